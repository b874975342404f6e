"""The service on a real Ray with the real trainer: a job trains with two ranks, and its results come back over REST."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from service_stand_ins import RunningService, running_service

from service.cluster.ray_launcher import RayLauncher
from service.embedded.local_servers import LocalServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def service(
    local_ray: LocalServer, tmp_path_factory: pytest.TempPathFactory, manifest: Path
) -> Iterator[RunningService]:
    launcher = RayLauncher(local_ray.url, Path(sys.executable), SecretStr(local_ray.token or ""))
    home = tmp_path_factory.mktemp("on-ray") / "home"
    with running_service(home, launcher, allowed_roots=(manifest.parent.parent,)) as running:
        yield running


def small(manifest: Path, epochs: int) -> dict[str, Any]:
    return {
        "data": {"manifest": str(manifest), "batch_size": 64, "image_size": 16, "augmentation": "none"},
        "schedule": {"epochs": epochs, "max_steps_per_epoch": 4},
        "label_noise": {"num_examples": 64, "num_mc_samples": 2},
        "resources": {"num_workers": 2},
    }


def test_a_job_trains_and_its_results_come_back(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, name="digits", **small(manifest, epochs=2))
    done = service.wait_for(job["id"], "SUCCEEDED", "FAILED", timeout_s=400)
    assert (done["state"], done["attempt"]) == ("SUCCEEDED", 1), done["message"]
    url = f"/api/v1/jobs/{job['id']}"
    events = service.client.get(f"{url}/events").json()["items"]
    assert [e["epoch"]["epoch"] for e in events if e["kind"] == "epoch"] == [1, 2]
    records = service.client.get(f"{url}/label-noise").json()
    assert [record["epoch"] for record in records] == [1, 2]
    for record in records:
        assert {kind: sum(histogram["counts"]) for kind, histogram in record["overall"].items()} == {
            "exact": record["num_examples"],
            "linearised": record["num_examples"],
        }
    page = service.client.get(f"{url}/examples", params={"sort": "ambiguity", "limit": 10}).json()
    assert page["total"] == 64
    assert [e["ambiguity"] for e in page["items"]] == sorted((e["ambiguity"] for e in page["items"]), reverse=True)
    report = service.client.get(f"{url}/evaluation").json()
    assert report["epoch"] == 2
    names = {series["name"] for series in service.client.get(f"{url}/metrics").json()["series"]}
    assert "train/loss" in names
    logs = {log["name"]: log for log in service.client.get(f"{url}/logs").json()}
    assert set(logs) == {"driver", "rank_0000", "rank_0001"}
    for name, log in logs.items():
        text = service.client.get(log["links"]["self"]).text
        assert f"job {job['id']}, attempt 1, {name[:4]}" in text.splitlines()[0]


def test_a_training_that_was_cancelled_stops(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, name="long", **small(manifest, epochs=10_000))
    service.wait_for(job["id"], "RUNNING", timeout_s=300)
    service.client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert service.wait_for(job["id"], "CANCELLED", "FAILED", timeout_s=120)["state"] == "CANCELLED"
