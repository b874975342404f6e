"""Studies by the client, sync and async alike, and by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from awaited_client import AnyClient
from command_line import Hush
from service_stand_ins import RunningService, SubprocessLauncher, spec_json

from service.client import ConflictError, InvalidRequestError, NotFoundError
from service.jobs.states import JobState
from service.schemas import JobView
from service.studies.study_spec import StudySpec

STUDY = """\
name: rho
base: {data: {manifest: shards/manifest.json, batch_size: 8, image_size: 8}, model: {arch: small_cnn}}
grid: {method.kind: [sam], method.rho: [0.02, 0.05]}
points: [{method: {kind: ivon}}]
seeds: [0, 1]
"""


def study(manifest: Path, **changes: object) -> StudySpec:
    fields = {"name": "lr", "base": spec_json(manifest, method={"kind": "sgd"}), "grid": {"method.lr": [0.1, 0.2]}}
    return StudySpec.model_validate(fields | changes)


def test_a_study_from_its_jobs_to_their_comparison(client: AnyClient, manifest: Path) -> None:
    made = client.create_study(study(manifest, name="learns"))
    assert [job.point for job in made.jobs] == [{"method.lr": 0.1}, {"method.lr": 0.2}]
    assert {job.id for job in client.jobs(study=made.id)} == {job.id for job in made.jobs}
    for job in made.jobs:
        *_, ended = client.follow(job.id)
        assert isinstance(ended, JobView)
        assert ended.study_id == made.id
    found = client.study(made.id)
    assert {job.state for job in found.jobs} == {JobState.SUCCEEDED}
    comparison = client.comparison(made.id)
    assert (comparison.study_id, comparison.is_final) == (made.id, True)
    assert [point.point for point in comparison.points] == [{"method.lr": 0.1}, {"method.lr": 0.2}]
    [best] = comparison.best
    assert best.point == {"method.lr": 0.2}
    assert best.test is not None
    assert best.test.mean.accuracy.median == pytest.approx(0.2)
    assert client.comparison_csv(made.id).count("\n") == 3
    with pytest.raises(ConflictError, match="has ended"):
        client.cancel_study(made.id)


def test_a_key_makes_one_study(client: AnyClient, manifest: Path) -> None:
    made = client.create_study(study(manifest), "k")
    assert client.create_study(study(manifest), "k").id == made.id
    with pytest.raises(ConflictError):
        client.create_study(study(manifest, seeds=[1]), "k")
    other = client.create_study(study(manifest))
    assert other.id != made.id
    assert [found.id for found in client.studies(page=1)] == [other.id, made.id]


def test_what_is_no_study(client: AnyClient, manifest: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"method\.lr = -1"):
        client.create_study(study(manifest, grid={"method.lr": [-1]}))
    for ask in (client.study, client.comparison, client.comparison_csv, client.cancel_study):
        with pytest.raises(NotFoundError, match="no study"):
            ask("0" * 26)


class TestCommands:
    @pytest.fixture
    def hush(self, service: RunningService) -> Hush:
        return Hush(service.url, service.token)

    def test_create_show_and_cancel(
        self,
        hush: Hush,
        client: AnyClient,
        launcher: SubprocessLauncher,
        manifest: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        launcher.answers = False  # so that all jobs wait
        folder = manifest.parent.parent
        monkeypatch.chdir(folder)
        assert "no studies yet" in hush("study", "list")[1]
        path = folder / "study.yaml"
        path.write_text(STUDY)
        code, out, err = hush("study", "create", str(path), "--set", "seeds=[0]")
        assert (code, err) == (0, "")
        assert "rho created as" in out
        assert "3 jobs" in out
        [made] = client.studies()
        assert made.id in hush("study", "list")[1]
        assert [found["name"] for found in json.loads(hush("study", "list", "--json")[1])] == ["rho"]
        assert "rho" in hush("study", "show", "rho")[1]
        shown = json.loads(hush("study", "show", made.id, "--json")[1])
        assert (shown["study"]["id"], len(shown["comparison"]["points"])) == (made.id, 3)
        assert hush("study", "show", "rho", "--csv")[1].count("\n") == 4
        assert hush("study", "cancel", "rho") == (0, "rho is CANCELLED: 3 cancelled\n", "")
        assert {job.state for job in client.study(made.id).jobs} == {JobState.CANCELLED}

    def test_what_is_wrong_is_said_in_a_line_each(self, hush: Hush, tmp_path: Path, manifest: Path) -> None:
        assert hush("study", "show", "nothing")[2] == (
            "hush: there is no study of name or id 'nothing'; `hush study list` lists them\n"
        )
        path = tmp_path / "study.yaml"
        path.write_text(STUDY.replace("0.05", "-1").replace("shards/manifest.json", str(manifest)))
        code, out, err = hush("study", "create", str(path))
        assert (code, out) == (2, "")
        assert "method.rho" in err
        assert "-1" in err
