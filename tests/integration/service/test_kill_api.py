"""The API is killed at each of its failpoints and started again: every job it had accepted ends right, and once.

The drivers are stand-ins that outlive it; tests/kill does the same to real ones, on a real Ray.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from api_processes import ApiProcess, api_processes
from file_launcher import FileLauncher
from marked_processes import wait_until
from service_stand_ins import spec_json

from service.control.failpoints import Failpoint
from service.jobs.states import TERMINAL_STATES, JobState, may_become

PASSINGS = {
    Failpoint.MOVE_BEFORE_EVENT: (1, 2, 4, 7),
    Failpoint.MOVE_AFTER_EVENT: (1, 3, 5, 8),
    Failpoint.HEARTBEAT_BEFORE_COMMIT: (1, 2, 4),
    Failpoint.HEARTBEAT_AFTER_COMMIT: (1, 2, 4),
    Failpoint.SUBMIT_AFTER_COMMIT: (1, 3),
    Failpoint.LAUNCH_AFTER_SUBMIT: (1, 4),
}
"""Where once is not enough: different things happen at each passing."""

WITHOUT_JOBS = {Failpoint.WEBHOOK_AFTER_SEND}
"""Places that no job passes by itself; webhooks have their own tests."""

PASSED = [place for place in Failpoint if place not in WITHOUT_JOBS]
FIRST = [f"{place}:{PASSINGS.get(place, (1,))[0]}" for place in PASSED]
LATER = [f"{place}:{number}" for place in PASSED for number in PASSINGS.get(place, (1,))[1:]]

KILLS = [(kill, database) for kill in FIRST for database in ("sqlite", "postgres")]
KILLS += [(kill, ("sqlite", "postgres")[index % 2]) for index, kill in enumerate(LATER)]
"""Each place at its first passing on both databases; at the later ones on one of them."""


@dataclass(frozen=True)
class Wanted:
    """A job of the test, and what must become of it."""

    name: str
    state: JobState
    attempts: int


JOBS = (
    Wanted("completes", JobState.SUCCEEDED, 1),
    Wanted("dies-once", JobState.SUCCEEDED, 2),
    Wanted("waits", JobState.CANCELLED, 1),
    Wanted("diverges", JobState.FAILED, 1),
)


def submit(api: ApiProcess, manifest: Path, wanted: Wanted) -> str:
    answer = api.ask("POST", "/api/v1/jobs", json=spec_json(manifest, name=wanted.name), key=f"key-{wanted.name}")
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def cancel(api: ApiProcess, job_id: str) -> None:
    api.wait_for(job_id, "RUNNING")
    answer = api.ask("POST", f"/api/v1/jobs/{job_id}/cancel")
    assert answer.status_code == 202, answer.text


def look(api: ApiProcess, home: Path, job_id: str, wanted: Wanted) -> None:
    """Hold one job that has ended against what must hold of it."""
    job = api.get(f"/api/v1/jobs/{job_id}")
    assert (job["state"], job["attempt"]) == (wanted.state, wanted.attempts), job
    events = api.get(f"/api/v1/jobs/{job_id}/events?limit=500")["items"]
    states = [JobState(event["state"]) for event in events if event["kind"] == "state"]
    assert states[0] is JobState.QUEUED
    assert all(may_become(before, after) for before, after in itertools.pairwise(states)), states
    assert states[-1] is wanted.state
    epochs = [event["epoch"]["epoch"] for event in events if event["kind"] == "epoch"]
    assert sorted(epochs) == ([1, 2] if wanted.state is JobState.SUCCEEDED else [])
    folders = sorted((home / "storage" / "jobs" / job_id).iterdir())
    starts = [(folder / "starts.txt").read_text().split() for folder in folders]
    assert [len(pids) for pids in starts] == [1] * wanted.attempts, "a driver ran twice"


@pytest.mark.parametrize(("kill", "database"), KILLS)
def test_every_job_ends_right_and_once(
    kill: str, database: str, manifest: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    home, database_url = tmp_path / "home", request.getfixturevalue(f"{database}_url")
    roots = {"HUSH_ALLOWED_ROOTS": str(manifest.parent.parent)}
    with api_processes(home, database_url, **roots) as [api]:
        api.start(kill)
        ids = {wanted: submit(api, manifest, wanted) for wanted in JOBS}
        cancel(api, next(job_id for wanted, job_id in ids.items() if wanted.name == "waits"))
        for job_id in ids.values():
            api.wait_for(job_id, *TERMINAL_STATES)
        assert api.num_kills == 1, "it was not killed"
        for wanted, job_id in ids.items():
            look(api, home, job_id, wanted)
            assert submit(api, manifest, wanted) == job_id
        listed: list[dict[str, Any]] = api.get("/api/v1/jobs")["items"]
        assert sorted(job["id"] for job in listed) == sorted(ids.values())
        cluster = FileLauncher(home / "cluster")
        wait_until(lambda: not cluster.running(), lambda: f"drivers are left: {cluster.running()}")


def test_another_process_takes_over(database_url: str, manifest: Path, tmp_path: Path) -> None:
    """Two processes on one database: the one that leads is killed and stays away."""
    home = tmp_path / "home"
    settings = {"HUSH_ALLOWED_ROOTS": str(manifest.parent.parent)}
    with api_processes(home, database_url, 2, **settings) as [leader, other]:
        leader.start()
        first = submit(leader, manifest, JOBS[0])
        leader.wait_for(first, "SUCCEEDED")
        other.start()
        second = submit(other, manifest, JOBS[1])
        leader.kill()
        other.wait_for(second, "SUCCEEDED")
        third = submit(other, manifest, Wanted("waits", JobState.CANCELLED, 1))
        leader.keep_up()
        cancel(leader, third)
        other.wait_for(third, "CANCELLED")
        for job_id, wanted in zip((first, second, third), JOBS, strict=False):
            look(other, home, job_id, wanted)
