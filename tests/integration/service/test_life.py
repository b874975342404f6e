"""The life of a job over REST, on a real database and real processes; only Ray and the training are stood in for."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from service_stand_ins import RunningService, SubprocessLauncher, running_service

from service.cluster.launcher import Node


def states(service: RunningService, job_id: str) -> list[str]:
    events = service.client.get(f"/api/v1/jobs/{job_id}/events").json()["items"]
    return [event["state"] for event in events if event["kind"] == "state"]


def test_a_job_runs_to_its_end(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest)
    assert (job["state"], job["attempt"], job["reason"]) == ("QUEUED", 1, "submitted")
    done = service.wait_for(job["id"], "SUCCEEDED", "FAILED")
    assert (done["state"], done["reason"], done["attempt"]) == ("SUCCEEDED", "result_complete", 1)
    assert states(service, job["id"]) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert done["started_at"] <= done["ended_at"]
    events = service.client.get(f"/api/v1/jobs/{job['id']}/events").json()["items"]
    assert [e["epoch"]["epoch"] for e in events if e["kind"] == "epoch"] == [1, 2]
    assert [e["id"] for e in events] == sorted(e["id"] for e in events)
    assert done["progress"]["step"] == 20
    metrics = service.client.get(f"/api/v1/jobs/{job['id']}/metrics").json()
    points = {series["name"]: [point["value"] for point in series["points"]] for series in metrics["series"]}
    assert points["train/loss"] == [1.0, 0.5]


def test_the_driver_gets_two_paths_and_a_private_file(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest)
    service.wait_for(job["id"], "SUCCEEDED")
    folder = service.settings.storage_dir / "jobs" / job["id"] / "attempt-1"
    assert json.loads((folder / "seen.json").read_text())["argv"] == [str(folder)]
    assert stat.S_IMODE((folder / "attempt.json").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("behaviour", "reason", "words"),
    [
        ("breaks", "attempt_failed", "RuntimeError: the loss is not finite at step 3"),
        ("no-result", "result_missing", "without writing result.json"),
        ("torn", "result_missing", "model.pt is damaged"),
    ],
)
def test_a_failure_says_why(service: RunningService, manifest: Path, behaviour: str, reason: str, words: str) -> None:
    job = service.submit(manifest, name=behaviour)
    done = service.wait_for(job["id"], "SUCCEEDED", "FAILED")
    assert (done["state"], done["reason"]) == ("FAILED", reason)
    assert words in done["message"]
    assert done["attempt"] == 1


def test_a_killed_driver_is_resumed(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, name="dies-once")
    done = service.wait_for(job["id"], "SUCCEEDED", "FAILED")
    assert (done["state"], done["attempt"]) == ("SUCCEEDED", 2)
    assert states(service, job["id"]) == [
        "QUEUED", "STARTING", "RUNNING", "RECOVERING", "STARTING", "RUNNING", "SUCCEEDED"
    ]  # fmt: skip
    folder = service.settings.storage_dir / "jobs" / job["id"]
    seen = json.loads((folder / "attempt-2" / "seen.json").read_text())
    assert seen["resume_dirs"] == [str(folder / "attempt-1")]
    events = service.client.get(f"/api/v1/jobs/{job['id']}/events").json()["items"]
    assert [e["epoch"]["epoch"] for e in events if e["kind"] == "epoch"] == [1, 2]  # epoch 1 was trained twice


def test_too_many_failures_end_the_job(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, name="dies", fault_tolerance={"max_failures": 1})
    done = service.wait_for(job["id"], "SUCCEEDED", "FAILED")
    assert (done["state"], done["reason"], done["attempt"]) == ("FAILED", "driver_lost", 2)
    assert "max_failures is 1" in done["message"]


def test_a_job_that_never_fits_is_told_so(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, resources={"num_workers": 8})
    done = service.wait_for(job["id"], "FAILED")
    assert done["reason"] == "never_fits"
    assert "num_workers 8" in done["message"]
    assert "2 CPUs and 0 GPUs" in done["message"]


def test_jobs_wait_for_room(service: RunningService, manifest: Path, launcher: SubprocessLauncher) -> None:
    first = service.submit(manifest, name="waits", resources={"num_workers": 2})
    second = service.submit(manifest, resources={"num_workers": 2})
    service.wait_for(first["id"], "RUNNING")
    assert service.client.get(f"/api/v1/jobs/{second['id']}").json()["state"] == "QUEUED"
    assert launcher.num_running() == 1
    service.client.post(f"/api/v1/jobs/{first['id']}/cancel")
    service.wait_for(second["id"], "SUCCEEDED")


def test_cancel_while_running_stops_it_by_its_heartbeat(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, name="waits")
    service.wait_for(job["id"], "RUNNING")
    answer = service.client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "CANCELLING")
    done = service.wait_for(job["id"], "CANCELLED")
    assert done["reason"] == "user_cancelled"
    folder = service.settings.storage_dir / "jobs" / job["id"] / "attempt-1"
    assert json.loads((folder / "result.json").read_text())["outcome"] == "stopped"
    again = service.client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()["state"]) == (202, "CANCELLED")


def test_a_driver_that_ignores_the_stop_is_ended(tmp_path: Path, manifest: Path, launcher: SubprocessLauncher) -> None:
    roots = (manifest.parent.parent,)
    with running_service(tmp_path / "home", launcher, allowed_roots=roots, cancel_grace_s=0.2) as service:
        job = service.submit(manifest, name="deaf")
        service.wait_for(job["id"], "RUNNING")
        service.client.post(f"/api/v1/jobs/{job['id']}/cancel")
        service.wait_for(job["id"], "CANCELLED")
        assert launcher.num_running() == 0


def test_cancel_while_queued(service: RunningService, manifest: Path, launcher: SubprocessLauncher) -> None:
    launcher.answers = False
    job = service.submit(manifest)
    answer = service.client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert answer.json()["state"] == "CANCELLED"
    assert states(service, job["id"]) == ["QUEUED", "CANCELLED"]


def test_cancel_after_the_end_is_a_conflict(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest)
    service.wait_for(job["id"], "SUCCEEDED")
    answer = service.client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert answer.status_code == 409
    assert "SUCCEEDED" in answer.json()["detail"]


def test_jobs_survive_a_restart_of_service_and_cluster(
    tmp_path: Path, manifest: Path, launcher: SubprocessLauncher
) -> None:
    roots = (manifest.parent.parent,)
    with running_service(tmp_path / "home", launcher, allowed_roots=roots) as service:
        running = service.submit(manifest, name="waits-once", resources={"num_workers": 2})
        queued = service.submit(manifest, resources={"num_workers": 2})
        service.wait_for(running["id"], "RUNNING")
    launcher.lose_everything()
    with running_service(tmp_path / "home", launcher, allowed_roots=roots) as service:
        done = service.wait_for(running["id"], "SUCCEEDED", "FAILED")
        assert (done["state"], done["attempt"]) == ("SUCCEEDED", 2)
        assert service.wait_for(queued["id"], "SUCCEEDED", "FAILED")["state"] == "SUCCEEDED"


def test_drivers_go_on_while_the_service_is_away(tmp_path: Path, manifest: Path, launcher: SubprocessLauncher) -> None:
    roots = (manifest.parent.parent,)
    with running_service(tmp_path / "home", launcher, allowed_roots=roots) as service:
        job = service.submit(manifest, name="waits")
        service.wait_for(job["id"], "RUNNING")
    with running_service(tmp_path / "home", launcher, allowed_roots=roots) as service:
        assert service.client.get(f"/api/v1/jobs/{job['id']}").json()["state"] == "RUNNING"
        assert launcher.num_running() == 1
        service.client.post(f"/api/v1/jobs/{job['id']}/cancel")
        assert service.wait_for(job["id"], "CANCELLED")["attempt"] == 1


def test_an_unreachable_cluster_is_not_a_lost_attempt(
    service: RunningService, manifest: Path, launcher: SubprocessLauncher
) -> None:
    job = service.submit(manifest, name="waits")
    service.wait_for(job["id"], "RUNNING")
    launcher.answers = False
    waiting = service.submit(manifest)
    assert service.client.get("/readyz").status_code == 503
    launcher.answers = True
    service.wait_for(waiting["id"], "SUCCEEDED")
    assert service.client.get(f"/api/v1/jobs/{job['id']}").json()["attempt"] == 1
    assert service.client.get("/readyz").json()["status"] == "ok"


def test_an_attempt_that_was_given_up_is_fenced_off(
    tmp_path: Path, manifest: Path, launcher: SubprocessLauncher
) -> None:
    roots = (manifest.parent.parent,)
    with running_service(tmp_path / "home", launcher, allowed_roots=roots, lost_after_s=0.3) as service:
        job = service.submit(manifest, name="dies-once")
        service.wait_for(job["id"], "SUCCEEDED")
        old = json.loads((service.settings.storage_dir / "jobs" / job["id"] / "attempt-1" / "attempt.json").read_text())
        beat = {"progress": {"phase": "training", "epoch": 1, "num_epochs": 2, "step": 1, "num_steps": 20}}
        url = f"/api/v1/internal/attempts/{job['id']}/1/heartbeat"
        bearer = {"Authorization": f"Bearer {old['heartbeat_token']}"}
        assert service.client.post(url, json=beat, headers=bearer).status_code == 409
        assert service.client.post(url, json=beat, headers={"Authorization": "Bearer x"}).status_code == 401
        assert service.client.post(url, json=beat).status_code == 401
        assert service.client.post(url.replace("/1/", "/9/"), json=beat, headers=bearer).status_code == 404


def test_a_large_job_is_not_starved_by_small_ones(
    service: RunningService, manifest: Path, launcher: SubprocessLauncher
) -> None:
    launcher.machines = (Node(2, 0), Node(1, 0))
    small = service.submit(manifest, name="waits")
    service.wait_for(small["id"], "RUNNING")
    large = service.submit(manifest, name="waits", resources={"num_workers": 3}, data={
        "manifest": str(manifest), "batch_size": 6, "image_size": 8})  # fmt: skip
    late = service.submit(manifest)
    service.client.post(f"/api/v1/jobs/{small['id']}/cancel")
    service.wait_for(large["id"], "RUNNING")
    assert service.client.get(f"/api/v1/jobs/{late['id']}").json()["state"] == "QUEUED"
    service.client.post(f"/api/v1/jobs/{large['id']}/cancel")
    service.wait_for(late["id"], "SUCCEEDED")
