"""Studies over REST: created, listed, looked at, cancelled together, compared, and stopped early."""

from __future__ import annotations

import csv
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json

from service.cluster.launcher import Node
from service.study_schemas import StudyComparison, StudyPage, StudyView

NESTED: dict[str, Any] = {"x": eval("[" * 90 + "]" * 90)}
ENDED = {"SUCCEEDED", "FAILED", "CANCELLED"}


def study_json(manifest: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "completes",
        "base": spec_json(manifest, method={"kind": "sam", "momentum": 0.8}),
        "grid": {"method.rho": [0, 0.05]},
        "points": [{"method": {"kind": "ivon"}}],
        **changes,
    }


def create(service: RunningService, body: dict[str, Any]) -> StudyView:
    answer = service.client.post("/api/v1/studies", json=body)
    assert answer.status_code == 202, answer.text
    return StudyView.model_validate(answer.json())


def look(service: RunningService, study: StudyView) -> StudyView:
    return StudyView.model_validate(service.client.get(study.links.self).json())


def wait_until_ended(service: RunningService, study: StudyView, timeout_s: float = 60) -> StudyView:
    deadline = time.monotonic() + timeout_s
    while (now := look(service, study)).state not in ENDED:
        assert time.monotonic() < deadline, now.jobs_by_state
        time.sleep(0.05)
    return now


def compare(service: RunningService, study: StudyView) -> StudyComparison:
    return StudyComparison.model_validate(service.client.get(study.links.comparison).json())


def test_a_study_is_its_jobs(service: RunningService, manifest: Path) -> None:
    answer = service.client.post("/api/v1/studies", json=study_json(manifest, seeds=[0, 1]))
    study = StudyView.model_validate(answer.json())
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/v1/studies/{study.id}" == study.links.self
    assert [job.point for job in study.jobs] == [
        {"method.rho": 0, "seed": 0},
        {"method.rho": 0, "seed": 1},
        {"method.rho": 0.05, "seed": 0},
        {"method.rho": 0.05, "seed": 1},
        {"method": {"kind": "ivon"}, "seed": 0},
        {"method": {"kind": "ivon"}, "seed": 1},
    ]
    assert [job.name for job in study.jobs] == [f"completes-{i}" for i in range(6)]
    assert [job.id for job in study.jobs] == sorted(job.id for job in study.jobs)
    job = service.client.get(study.jobs[3].self).json()
    assert (job["name"], job["spec"]["method"]["rho"], job["spec"]["seed"]) == ("completes-3", 0.05, 1)
    assert job["spec"]["method"]["momentum"] == 0.8
    listed = service.client.get(study.links.jobs).json()["items"]
    assert {entry["id"] for entry in listed} == {entry.id for entry in study.jobs}
    ended = wait_until_ended(service, study)
    assert ended.state == "SUCCEEDED"
    assert ended.jobs_by_state == {"SUCCEEDED": 6}


def test_what_is_wrong_is_named_with_its_job_and_nothing_is_stored(service: RunningService, manifest: Path) -> None:
    def errors(**changes: Any) -> list[tuple[str, str | None, str]]:
        answer = service.client.post("/api/v1/studies", json=study_json(manifest, **changes))
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        return [(entry["field"], entry.get("value"), entry["message"]) for entry in answer.json()["errors"]]

    assert errors(grid={"method.rho": [0, -1]}) == [
        ("method.rho", "-1", "must be greater than or equal to 0 (job 1: method.rho=-1)")
    ]
    [(field, value, message)] = errors(base=spec_json(manifest.parent / "none.json"), grid={})
    assert (field, value) == ("data.manifest", repr(str(manifest.parent / "none.json")))
    [(field, _, message)] = errors(grid={"method.rho": [i / 1000 for i in range(1000)]}, seeds=[0, 1])
    assert (field, message) == ("grid", "makes 2,002 jobs in all; a study has at most 1,000")
    [(field, value, message)] = errors(gird={})
    assert (field, value) == ("gird", "{}")
    assert "grid, points, seeds, early_stop" in message
    assert service.client.get("/api/v1/studies").json()["items"] == []
    assert service.client.get("/api/v1/jobs").json()["items"] == []


@pytest.mark.parametrize("base", [{"name": "\ud800"}, {"name": "a\0b"}, {"x": [[[[]]]]}, {"data": 7}, NESTED])
def test_strange_bases_are_refused(service: RunningService, manifest: Path, base: dict[str, Any]) -> None:
    content = json.dumps(study_json(manifest, base=spec_json(manifest) | base, grid={}))
    answer = service.client.post("/api/v1/studies", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused(service: RunningService, manifest: Path, number: str) -> None:
    content = json.dumps(study_json(manifest, base=spec_json(manifest) | {"name": 7}, grid={}))
    content = content.replace('"name": 7', f'"name": [{number}]')
    answer = service.client.post("/api/v1/studies", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert "not finite" in answer.json()["detail"]
    assert service.client.get("/api/v1/studies").status_code == 200


def test_one_idempotency_key_makes_one_study(
    service: RunningService, manifest: Path, launcher: SubprocessLauncher
) -> None:
    launcher.answers = False

    def post(**changes: Any) -> httpx.Response:
        headers = {"Idempotency-Key": "monday"}
        return service.client.post("/api/v1/studies", json=study_json(manifest, **changes), headers=headers)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(), range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert len(service.client.get("/api/v1/jobs").json()["items"]) == 3
    assert post(seeds=[1]).status_code == 409
    assert len(service.client.get("/api/v1/studies").json()["items"]) == 1


def test_pages_and_other_tenants(service: RunningService, manifest: Path, launcher: SubprocessLauncher) -> None:
    launcher.answers = False
    made = [create(service, study_json(manifest, name=f"study-{i}")) for i in range(3)]
    first = StudyPage.model_validate(service.client.get("/api/v1/studies", params={"limit": 2}).json())
    params = {"limit": 2, "cursor": first.next_cursor}
    second = StudyPage.model_validate(service.client.get("/api/v1/studies", params=params).json())
    assert [entry.id for entry in (*first.items, *second.items)] == [study.id for study in reversed(made)]
    assert second.next_cursor is None
    assert first.items[0].state == "QUEUED"
    assert first.items[0].jobs_by_state == {"QUEUED": 3}
    with service.client_of(service.new_token(tenant="other")) as other:
        assert other.get("/api/v1/studies").json()["items"] == []
        for path in (made[0].links.self, made[0].links.comparison):
            assert other.get(path).status_code == 404
        assert other.post(f"{made[0].links.self}/cancel").status_code == 404
    assert service.client.get("/api/v1/studies/no-id").status_code == 404


def test_a_study_is_cancelled_as_one(service: RunningService, manifest: Path) -> None:
    study = create(service, study_json(manifest, name="waits", seeds=[0, 1]))
    deadline = time.monotonic() + 60
    while look(service, study).jobs_by_state.get("RUNNING", 0) < 2:  # as many as fit; the others wait
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = StudyView.model_validate(service.client.post(f"{study.links.self}/cancel").json())
    assert answer.state == "CANCELLING"
    assert answer.cancelled_at is not None
    assert answer.jobs_by_state == {"CANCELLED": 4, "CANCELLING": 2}
    ended = wait_until_ended(service, study)
    assert ended.state == "CANCELLED"
    assert {(job.state, job.reason) for job in ended.jobs} == {("CANCELLED", "study_cancelled")}
    again = service.client.post(f"{study.links.self}/cancel")
    assert again.status_code == 202
    assert again.json()["cancelled_at"] == answer.model_dump(mode="json")["cancelled_at"]


def test_a_study_that_has_ended_cannot_be_cancelled(service: RunningService, manifest: Path) -> None:
    study = create(service, study_json(manifest, name="breaks", grid={}, points=[]))
    assert wait_until_ended(service, study).state == "FAILED"
    assert service.client.post(f"{study.links.self}/cancel").status_code == 409
    assert look(service, study).state == "FAILED"


def test_a_job_that_is_retried_takes_its_place_in_the_study(service: RunningService, manifest: Path) -> None:
    study = create(service, study_json(manifest, name="waits", grid={}, points=[], seeds=[0, 1]))
    deadline = time.monotonic() + 60
    while look(service, study).jobs_by_state.get("RUNNING", 0) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    service.client.post(f"{study.links.self}/cancel")
    old = wait_until_ended(service, study)
    assert old.state == "CANCELLED"
    retried = service.client.post(f"{old.jobs[1].self}/retry").json()
    assert retried["study_id"] == study.id
    service.wait_for(retried["id"], "RUNNING")
    now = look(service, study)
    assert (now.state, now.jobs_by_state) == ("RUNNING", {"CANCELLED": 1, "RUNNING": 1})
    assert [job.id for job in now.jobs] == [old.jobs[0].id, retried["id"]]
    assert now.jobs[1].point == old.jobs[1].point
    [point] = compare(service, study).points
    assert point.job_ids == [job.id for job in now.jobs]
    assert len(service.client.get(study.links.jobs).json()["items"]) == 3, "the old one is kept"
    again = service.client.post(f"{old.jobs[1].self}/retry")
    assert again.status_code == 409
    assert retried["id"] in again.json()["detail"]
    service.client.post(f"{study.links.self}/cancel")
    assert wait_until_ended(service, study).jobs_by_state == {"CANCELLED": 2}


def test_points_are_compared(service: RunningService, manifest: Path) -> None:
    points = [{"method": {"kind": kind, "lr": lr}} for kind, lr in (("sgd", 0.3), ("sgd", 0.5), ("ivon", 0.4))]
    study = create(service, study_json(manifest, name="learns", grid={}, points=points, seeds=[0, 1, 2]))
    assert wait_until_ended(service, study).state == "SUCCEEDED"
    found = compare(service, study)
    assert found.is_final
    assert [(best.method, best.point) for best in found.best] == [("sgd", points[1]), ("ivon", points[2])]
    best = found.best[0]
    assert best.val is not None
    assert best.test is not None
    accuracy = best.test.mean.accuracy
    assert (accuracy.num_seeds, accuracy.min, accuracy.median, accuracy.max) == (3, 0.5, 0.51, 0.52)
    assert (best.num_jobs, best.num_succeeded, best.epochs) == (3, 3, (2, 2))
    answer = service.client.get(study.links.comparison, params={"format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["is_best"] for row in rows] == ["false", "true", "true"]
    assert [float(row["val.mean.accuracy.median"]) for row in rows] == pytest.approx([0.31, 0.51, 0.41])
    assert service.client.get(study.links.comparison, params={"format": "xml"}).status_code == 422


def test_hopeless_jobs_are_stopped_early(tmp_path: Path, manifest: Path, launcher: SubprocessLauncher) -> None:
    launcher.machines = (Node(1, 0),)  # one after the other, so that it is known who is held against whom
    rates = [0.9, 0.1, 0.2, 0.3]
    body = study_json(
        manifest,
        name="learns",
        base=spec_json(manifest, method={"kind": "sgd"}, schedule={"epochs": 4}),
        grid={"method.lr": rates},
        points=[],
        early_stop={"kind": "asha", "grace_epochs": 2, "reduction_factor": 4},
    )
    with running_service(tmp_path / "home", launcher, allowed_roots=(manifest.parent.parent,)) as service:
        study = create(service, body)
        ended = wait_until_ended(service, study, timeout_s=120)
        found = compare(service, study)
        again = service.client.post(f"{ended.jobs[1].self}/retry").json()
        assert again["study_id"] is None, "it would be stopped again"
    assert ended.state == "SUCCEEDED"
    assert ended.jobs[0].state == "SUCCEEDED"
    stopped = [job.index for job in ended.jobs if (job.state, job.reason) == ("CANCELLED", "early_stopped")]
    assert stopped == [1, 2, 3]
    assert ended.num_early_stopped == 3
    assert found.best[0].point == {"method.lr": 0.9}
    for index in stopped:
        point = found.points[index]
        assert (point.num_early_stopped, point.num_cancelled) == (1, 1)
        assert point.epochs in {(2, 2), (3, 3)}
        assert point.val is not None
        assert point.test is None


def test_early_stop_needs_a_val_split(service: RunningService, manifest: Path, tmp_path: Path) -> None:
    content = json.loads(manifest.read_bytes())
    del content["splits"]["val"]
    without = manifest.with_name("without-val.json")
    without.write_text(json.dumps(content))
    body = study_json(without, early_stop={})
    body["base"] = spec_json(without, method={"kind": "sam"})
    answer = service.client.post("/api/v1/studies", json=body)
    assert answer.status_code == 422
    assert "has no split 'val', which early_stop needs" in answer.json()["errors"][0]["message"]
    assert service.client.post("/api/v1/studies", json=body | {"early_stop": None}).status_code == 202
