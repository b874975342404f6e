"""The life of a job over REST, on a real database and real processes; only Ray and the training are stood in for."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from marked_processes import wait_until
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json

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
        ("diverges", "non_finite_loss", "rank 1: the loss is nan\nTraceback (most recent call last):"),
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


def test_an_attempt_whose_rank_was_lost_is_followed_by_another(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, name="loses-a-rank")
    done = service.wait_for(job["id"], "SUCCEEDED", "FAILED")
    assert (done["state"], done["attempt"], done["num_failures"]) == ("SUCCEEDED", 2, 1)
    first, second = service.client.get(done["links"]["attempts"]).json()["items"]
    assert (first["number"], first["reason"], second["reason"]) == (1, "worker_lost", "result_complete")
    assert "rank 1: rank 1 was killed" in first["message"]
    assert first["created_at"] <= first["submitted_at"] <= first["heartbeat_at"] <= first["ended_at"]
    assert first["ended_at"] <= second["submitted_at"] <= second["ended_at"]


def test_a_driver_that_falls_silent_is_given_up(tmp_path: Path, manifest: Path, launcher: SubprocessLauncher) -> None:
    roots = (manifest.parent.parent,)
    with running_service(tmp_path / "home", launcher, allowed_roots=roots, lost_after_s=0.5) as service:
        job = service.submit(manifest, name="hangs", fault_tolerance={"max_failures": 1})
        done = service.wait_for(job["id"], "SUCCEEDED", "FAILED")
        assert (done["state"], done["reason"], done["attempt"]) == ("FAILED", "heartbeat_lost", 2)
        attempts = service.client.get(done["links"]["attempts"]).json()["items"]
        assert [attempt["reason"] for attempt in attempts] == ["heartbeat_lost", "heartbeat_lost"]
        wait_until(lambda: launcher.num_running() == 0, "the silent drivers have ended")


def test_a_job_that_is_late_is_stopped(service: RunningService, manifest: Path) -> None:
    late = service.submit(manifest, name="waits", scheduling={"deadline_s": 2})
    service.wait_for(late["id"], "RUNNING")
    done = service.wait_for(late["id"], "SUCCEEDED", "FAILED", "CANCELLED")
    assert (done["state"], done["reason"]) == ("FAILED", "deadline")
    assert states(service, late["id"]) == ["QUEUED", "STARTING", "RUNNING", "CANCELLING", "FAILED"]


def test_a_job_that_waits_past_its_deadline_fails(
    service: RunningService, manifest: Path, launcher: SubprocessLauncher
) -> None:
    launcher.answers = False
    late = service.submit(manifest, scheduling={"deadline_s": 0.2})
    done = service.wait_for(late["id"], "FAILED")
    assert done["reason"] == "deadline"
    assert done["deadline_at"] <= done["ended_at"]
    assert states(service, late["id"]) == ["QUEUED", "FAILED"]


def test_priority_goes_before_age(service: RunningService, manifest: Path) -> None:
    first = service.submit(manifest, name="waits", resources={"num_workers": 2})
    service.wait_for(first["id"], "RUNNING")
    small = service.submit(manifest, resources={"num_workers": 2})
    urgent = service.submit(manifest, resources={"num_workers": 2}, scheduling={"priority": 5})
    service.client.post(f"/api/v1/jobs/{first['id']}/cancel")
    done = [service.wait_for(job["id"], "SUCCEEDED") for job in (small, urgent)]
    assert done[1]["priority"] == 5
    assert done[1]["started_at"] < done[0]["started_at"]


def test_a_tenants_limit_keeps_nobody_else_waiting(
    tmp_path: Path, manifest: Path, launcher: SubprocessLauncher
) -> None:
    launcher.machines = (Node(4, 0),)
    settings = {"allowed_roots": (manifest.parent.parent,), "max_running_jobs_per_tenant": 1}
    with running_service(tmp_path / "home", launcher, **settings) as service:
        first, second = (service.submit(manifest, name="waits") for _ in range(2))
        service.wait_for(first["id"], "RUNNING")
        with service.client_of(service.new_token(tenant="other")) as other:
            theirs = other.post("/api/v1/jobs", json=spec_json(manifest)).json()
            wait_until(lambda: other.get(theirs["links"]["self"]).json()["state"] == "SUCCEEDED", "theirs has ended")
        assert service.client.get(f"/api/v1/jobs/{second['id']}").json()["state"] == "QUEUED"


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


def test_cancel_now_does_not_wait_for_the_attempt(tmp_path: Path, manifest: Path, launcher: SubprocessLauncher) -> None:
    roots = (manifest.parent.parent,)
    with running_service(tmp_path / "home", launcher, allowed_roots=roots, cancel_grace_s=600) as service:
        job = service.submit(manifest, name="deaf")
        service.wait_for(job["id"], "RUNNING")
        url = f"/api/v1/jobs/{job['id']}/cancel"
        assert service.client.post(url, json={"mode": "graceful"}).json()["cancel_mode"] == "graceful"
        hurried = service.client.post(url, json={"mode": "now"}).json()
        assert (hurried["state"], hurried["cancel_mode"]) == ("CANCELLING", "now")
        assert service.client.post(url).json()["cancel_mode"] == "now"
        service.wait_for(job["id"], "CANCELLED")
        assert launcher.num_running() == 0
        assert not (service.settings.storage_dir / "jobs" / job["id"] / "attempt-1" / "result.json").exists()


@pytest.mark.parametrize("body", [{"mode": "later"}, {"when": "now"}, [], "now"])
def test_a_cancel_that_cannot_be_read(service: RunningService, manifest: Path, body: object) -> None:
    job = service.submit(manifest, name="waits")
    answer = service.client.post(f"/api/v1/jobs/{job['id']}/cancel", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"]
    assert service.client.post(f"/api/v1/jobs/{job['id']}/cancel", json=None).status_code == 202


def test_a_failed_job_is_retried_by_a_new_one(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, name="waits-once", fault_tolerance={"max_failures": 0})
    service.wait_for(job["id"], "RUNNING")
    assert service.client.post(f"/api/v1/jobs/{job['id']}/retry").status_code == 409
    service.client.post(f"/api/v1/jobs/{job['id']}/cancel", json={"mode": "now"})
    service.wait_for(job["id"], "CANCELLED")
    key = {"Idempotency-Key": "again"}
    answers = [service.client.post(f"/api/v1/jobs/{job['id']}/retry", headers=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    retried = answers[0].json()
    assert retried["id"] == answers[1].json()["id"] != job["id"]
    assert answers[0].headers["location"] == retried["links"]["self"]
    assert (retried["retry_of"], retried["reason"], retried["attempt"]) == (job["id"], "retried", 1)
    assert retried["spec"] == job["spec"]
    other = service.submit(manifest)
    clash = service.client.post("/api/v1/jobs", json=spec_json(manifest), headers=key)
    assert clash.status_code == 409
    service.wait_for(retried["id"], "RUNNING")
    folders = service.settings.storage_dir / "jobs"
    seen = json.loads((folders / retried["id"] / "attempt-1" / "seen.json").read_text())
    assert seen["resume_dirs"] == [str(folders / job["id"] / "attempt-1")]
    assert service.client.get(f"/api/v1/jobs/{job['id']}").json()["state"] == "CANCELLED"
    service.wait_for(other["id"], "SUCCEEDED")
    assert service.client.post(f"/api/v1/jobs/{other['id']}/retry").status_code == 409
    assert service.client.post(f"/api/v1/jobs/{'0' * 26}/retry").status_code == 404


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
