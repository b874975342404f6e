"""The main job through the whole system: raw photographs -> shards -> Ray Train with IVON -> MLflow -> REST.

On the real photographs where they are at hand, with the example that the README submits; else on a small set of crops
of real photographs in the same layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sample_data import make_clothing
from serving import Serving

from trainer.run_schema import LabelNoiseRecord

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "clothing-photos.tar"
EXAMPLE = Path(__file__).parents[2] / "examples" / "clothing-photos-ivon.yaml"
ONE_EPOCH = ("--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Trained:
    """A service on which the example has been trained for one epoch."""

    serving: Serving
    url: str
    job: str
    said: list[dict[str, object]]
    """What `hush submit --follow --json` printed."""

    def get(self, path: str, **params: str | int) -> httpx.Response:
        url, headers = f"{self.url}/api/v1/jobs/{self.job}{path}", self.serving.headers
        return httpx.get(url, params=params, headers=headers, trust_env=False, timeout=30)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("main-job")
    source = PHOTOS if PHOTOS.exists() else make_clothing(folder / "raw").root
    serving = Serving(folder)
    try:
        built = serving.run("data", "build", "clothing1m", str(source), str(serving.home / "photos"), "--json")
        assert built.returncode == 0, built.stderr
        url = serving.wait_ready()
        manifest = ("--set", f"data.manifest={serving.home / 'photos' / 'manifest.json'}")
        done = serving.run("submit", str(EXAMPLE), *manifest, *ONE_EPOCH, "--follow", "--json", timeout_s=800)
        assert done.returncode == 0, done.stdout + done.stderr
        said = [json.loads(line) for line in done.stdout.splitlines()]
        (job,) = json.loads(serving.run("jobs", "--json").stdout)
        yield Trained(serving, url, job["id"], said)
    finally:
        serving.clear_up()


def test_histograms_count_every_tracked_example(trained: Trained) -> None:
    (record,) = [LabelNoiseRecord.model_validate(answer) for answer in trained.get("/label-noise").json()]
    total = trained.get("/examples", limit=1).json()["total"]
    assert record.num_examples == total > 0
    assert set(record.overall) == {"exact", "linearised"}
    for estimator, histogram in record.overall.items():
        assert sum(histogram.counts) == histogram.num_examples == total
        of_classes = [one.counts for one in record.per_class[estimator]]
        assert tuple(map(sum, zip(*of_classes, strict=True))) == histogram.counts
        assert histogram.quantiles["p95"] > histogram.quantiles["p5"] > 0


def test_mlflow_holds_the_same_histograms_pictures_and_metrics(trained: Trained) -> None:
    job = trained.get("").json()
    mlflow, _, run = job["links"]["mlflow"].partition("/#/")
    run_id = run.rpartition("/")[2]
    with httpx.Client(base_url=mlflow, trust_env=False, timeout=30) as client:
        params = {"path": "label_noise/epoch_0001.json", "run_uuid": run_id}
        copy = client.get("/get-artifact", params=params)
        assert [copy.json()] == trained.get("/label-noise").json()
        pictures = client.get("/api/2.0/mlflow/artifacts/list", params={"run_id": run_id, "path": "images"}).json()
        assert any("label_noise" in file["path"] for file in pictures["files"])
        logged = client.get("/api/2.0/mlflow/runs/get", params={"run_id": run_id}).json()["run"]
    metrics = {metric["key"]: metric["value"] for metric in logged["data"]["metrics"]}
    assert {
        "label_noise/exact/p50",
        "label_noise/linearised/p95",
        "val_clean/accuracy",
        "test_clean_averaged/ece",
    } <= set(metrics)
    (series,) = [one for one in trained.get("/metrics").json()["series"] if one["name"] == "label_noise/exact/p50"]
    assert series["points"][-1]["value"] == pytest.approx(metrics["label_noise/exact/p50"])
    assert logged["info"]["status"] == "FINISHED"


def test_examples_come_sorted_and_with_both_labels(trained: Trained) -> None:
    page = trained.get("/examples", sort="suspicion", limit=20).json()
    suspicion = [example["suspicion"] for example in page["items"]]
    assert suspicion == sorted(suspicion, reverse=True)
    assert len({example["example_id"] for example in page["items"]}) == min(20, page["total"])
    assert any(example["clean_label"] is not None for example in trained.get("/examples", limit=500).json()["items"])


def test_evaluation_adds_up(trained: Trained) -> None:
    report = trained.get("/evaluation").json()
    evaluations = [report[by][split] for by in ("splits", "averaged") for split in ("val", "test")]
    assert [evaluation["predictor"] for evaluation in evaluations] == ["mean", "mean", "averaged", "averaged"]
    for evaluation in evaluations:
        assert evaluation["labels"] == "clean"
        assert sum(map(sum, evaluation["confusion"])) == evaluation["num_examples"]
        assert sum(one["num_examples"] for one in evaluation["reliability"]) == evaluation["num_examples"]
        right = sum(row[label] for label, row in enumerate(evaluation["confusion"]))
        assert evaluation["accuracy"] == pytest.approx(right / evaluation["num_examples"])


def test_following_tells_the_whole_life(trained: Trained) -> None:
    states = [event["state"] for event in trained.get("/events").json()["items"] if event["kind"] == "state"]
    assert states == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert any("images_per_s" in json.dumps(line) for line in trained.said), "progress came by the events"


def test_a_bad_spec_is_one_line_and_exit_code_2(trained: Trained) -> None:
    bad = trained.serving.run("submit", str(EXAMPLE), "--set", "method.lr=-1")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert len(bad.stderr.strip().splitlines()) == 1
    assert "method.lr" in bad.stderr
    assert "-1" in bad.stderr
    assert len(json.loads(trained.serving.run("jobs", "--json").stdout)) == 1


def test_jobs_survive_a_restart_of_the_service(trained: Trained) -> None:
    before = trained.get("").json()
    assert trained.serving.end() == 0
    trained.serving.assert_nothing_left()
    trained.serving.start()
    trained.url = trained.serving.wait_ready()
    assert trained.get("").json()["state"] == before["state"] == "SUCCEEDED"
    assert len(trained.get("/label-noise").json()) == 1
