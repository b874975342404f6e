"""What the reconciler decides, without clock, database or cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.cluster.launcher import DriverStatus, Node, Phase
from service.control.decisions import Launch, Move, Policy, Seen, Stop, decide, last_lines, needs_asking, plan_queue
from service.jobs.records import AttemptRecord, JobRecord, LiveJob
from service.jobs.states import JobState, Reason, may_become
from trainer.spec import JobSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Policy(cancel_grace_s=10, lost_after_s=60, linger_s=30)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def live(state: JobState, *, beat_s: float | None = 1, submitted_s: float | None = 100, **changes: Any) -> LiveJob:
    spec = {"name": "job", "data": {"manifest": "/m", "batch_size": 64}, **changes.pop("spec", {})}
    job = JobRecord(
        id=changes.pop("id", "0" * 26),
        tenant="default",
        spec=JobSpec.model_validate(spec),
        state=state,
        state_since=ago(changes.pop("since_s", 100)),
        reason=Reason.USER_CANCELLED if state is JobState.CANCELLING else Reason.SUBMITTED,
        message=None,
        attempt=1,
        num_failures=changes.pop("num_failures", 0),
        progress=None,
        mlflow_run_id=None,
        mlflow_experiment_id=None,
        created_at=ago(100),
        updated_at=ago(1),
        started_at=None,
        ended_at=None,
    )
    assert not changes
    times = [None if seconds is None else ago(seconds) for seconds in (submitted_s, beat_s)]
    return LiveJob(job, AttemptRecord(job.id, 1, "hash", ago(100), *times))


def decided(job: LiveJob, phase: Phase | None, **seen: Any) -> tuple[object, ...]:
    return decide(job, Seen(None if phase is None else DriverStatus(phase, "words"), **seen), NOW, POLICY)


ENDED = [Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED, Phase.LOST]


@pytest.mark.parametrize("phase", ENDED)
@pytest.mark.parametrize("state", [JobState.STARTING, JobState.RUNNING])
def test_a_complete_result_is_success_whatever_ray_says(state: JobState, phase: Phase) -> None:
    assert decided(live(state), phase, outcome="succeeded") == (Move(JobState.SUCCEEDED, Reason.RESULT_COMPLETE),)


def test_rays_word_alone_is_no_success() -> None:
    [move] = decided(live(JobState.RUNNING), Phase.SUCCEEDED, result_problem="model.pt is damaged")
    assert move == Move(JobState.FAILED, Reason.RESULT_MISSING, "model.pt is damaged")


def test_a_lost_attempt_is_followed_by_another() -> None:
    [move] = decided(live(JobState.RUNNING), Phase.LOST)
    assert move == Move(JobState.RECOVERING, Reason.HEAD_LOST, "words", next_attempt=True)


@pytest.mark.parametrize(("num_failures", "state"), [(2, JobState.RECOVERING), (3, JobState.FAILED)])
def test_up_to_max_failures(num_failures: int, state: JobState) -> None:
    [move] = decided(live(JobState.RUNNING, num_failures=num_failures), Phase.LOST)
    assert isinstance(move, Move)
    assert move.new is state


def test_an_error_of_the_driver_is_not_repeated() -> None:
    assert decided(live(JobState.RUNNING), Phase.FAILED) == (Move(JobState.FAILED, Reason.ATTEMPT_FAILED, "words"),)


def test_an_attempt_that_stopped_by_itself_is_resumed() -> None:
    [move] = decided(live(JobState.RUNNING), Phase.SUCCEEDED, outcome="stopped")
    assert isinstance(move, Move)
    assert (move.new, move.next_attempt) == (JobState.RECOVERING, True)


def test_silence_counts_only_while_ray_is_away() -> None:
    assert decided(live(JobState.RUNNING, beat_s=1000), Phase.RUNNING) == ()
    assert decided(live(JobState.RUNNING, beat_s=59), None) == ()
    [move] = decided(live(JobState.RUNNING, beat_s=61), None)
    assert isinstance(move, Move)
    assert move.new is JobState.RECOVERING


def test_what_was_not_handed_over_is_handed_over_again() -> None:
    assert decided(live(JobState.STARTING, submitted_s=None, beat_s=None), Phase.LOST) == (Launch(),)


def test_a_driver_that_lingers_after_its_result_is_ended() -> None:
    assert decided(live(JobState.RUNNING), Phase.RUNNING, outcome="succeeded", result_age_s=29) == ()
    done = Move(JobState.SUCCEEDED, Reason.RESULT_COMPLETE)
    assert decided(live(JobState.RUNNING), Phase.RUNNING, outcome="succeeded", result_age_s=31) == (Stop(), done)


def test_cancelling_waits_for_the_attempt_and_then_ends_it() -> None:
    assert decided(live(JobState.CANCELLING, since_s=9), Phase.RUNNING) == ()
    assert decided(live(JobState.CANCELLING, since_s=11), Phase.RUNNING) == (Stop(),)
    assert decided(live(JobState.CANCELLING, since_s=1, beat_s=None), Phase.PENDING) == (Stop(),)


@pytest.mark.parametrize("phase", ENDED)
def test_cancelling_ends(phase: Phase) -> None:
    assert decided(live(JobState.CANCELLING), phase) == (Move(JobState.CANCELLED, Reason.USER_CANCELLED),)
    [move] = decided(live(JobState.CANCELLING), phase, outcome="succeeded")
    assert isinstance(move, Move)
    assert move.new is JobState.SUCCEEDED


def test_cancelling_ends_without_ray_too() -> None:
    assert decided(live(JobState.CANCELLING, beat_s=10), None) == ()
    assert decided(live(JobState.CANCELLING, beat_s=61), None) == (Move(JobState.CANCELLED, Reason.USER_CANCELLED),)


@pytest.mark.parametrize("state", [JobState.STARTING, JobState.RUNNING, JobState.CANCELLING])
@pytest.mark.parametrize("phase", [None, *Phase])
@pytest.mark.parametrize("outcome", [None, "succeeded", "stopped"])
@pytest.mark.parametrize("beat_s", [None, 1, 1000])
def test_every_move_is_legal(state: JobState, phase: Phase | None, outcome: str | None, beat_s: float | None) -> None:
    for num_failures in (0, 3):
        job = live(state, beat_s=beat_s, num_failures=num_failures)
        for action in decided(job, phase, outcome=outcome, result_age_s=1000):
            assert not isinstance(action, Move) or may_become(state, action.new)


def test_ray_is_not_asked_while_heartbeats_come() -> None:
    assert not needs_asking(live(JobState.RUNNING, beat_s=1), NOW, has_result=False)
    assert needs_asking(live(JobState.RUNNING, beat_s=1), NOW, has_result=True)
    assert needs_asking(live(JobState.RUNNING, beat_s=4), NOW, has_result=False)
    assert needs_asking(live(JobState.STARTING, beat_s=None), NOW, has_result=False)
    assert not needs_asking(live(JobState.QUEUED, beat_s=None), NOW, has_result=False)


def asking(identity: str, num_workers: int, *, gpus: int = 0, state: JobState = JobState.QUEUED) -> LiveJob:
    resources = {"num_workers": num_workers, "gpus_per_worker": gpus}
    data = {"manifest": "/m", "batch_size": num_workers}
    return live(state, id=identity, spec={"resources": resources, "data": data})


def planned(jobs: list[LiveJob], *nodes: Node) -> list[tuple[str, JobState]]:
    return [(job.job.id, move.new) for job, move in plan_queue(jobs, nodes)]


def test_the_oldest_that_fit_start() -> None:
    jobs = [asking(name, 2) for name in "abc"]
    assert planned(jobs, Node(4, 0)) == [("a", JobState.STARTING), ("b", JobState.STARTING)]


def test_what_runs_takes_its_room() -> None:
    for state in (JobState.STARTING, JobState.RUNNING, JobState.CANCELLING):
        assert planned([asking("a", 2, state=state), asking("b", 1)], Node(2, 0)) == []


def test_jobs_that_recover_come_first() -> None:
    jobs = [asking("a", 2), asking("b", 2, state=JobState.RECOVERING)]
    assert planned(jobs, Node(2, 0)) == [("b", JobState.STARTING)]


def test_who_waits_keeps_its_place() -> None:
    jobs = [asking("a", 1, state=JobState.RUNNING), asking("b", 2), asking("c", 1)]
    assert planned(jobs, Node(2, 0)) == []


def test_who_waits_for_a_gpu_leaves_the_spare_cpus() -> None:
    jobs = [asking("a", 1, gpus=1, state=JobState.RUNNING), asking("b", 1, gpus=1), asking("c", 1)]
    assert planned(jobs, Node(4, 1)) == [("c", JobState.STARTING)]


def test_a_worker_does_not_span_machines() -> None:
    wide = live(JobState.QUEUED, spec={"resources": {"cpus_per_worker": 3}})
    [(_, move)] = plan_queue([wide], [Node(2, 0), Node(2, 0)])
    assert (move.new, move.reason) == (JobState.FAILED, Reason.NEVER_FITS)
    assert "cpus_per_worker 3" in (move.message or "")
    assert planned([replace(wide)], Node(2, 0), Node(3, 0)) == [(wide.job.id, JobState.STARTING)]


def test_gpus_that_are_not_there() -> None:
    assert planned([asking("a", 1, gpus=1)], Node(8, 0)) == [("a", JobState.FAILED)]


def test_a_job_that_recovers_waits_for_the_cluster_to_come_back() -> None:
    assert planned([asking("a", 4, state=JobState.RECOVERING)], Node(2, 0)) == []


def test_a_head_without_machines_decides_nothing() -> None:
    assert planned([asking("a", 1)]) == []


def test_the_last_lines_hold_the_error() -> None:
    text = "\n".join(f"line {number}" for number in range(100)) + "\nValueError: x\n"
    assert last_lines(text).splitlines()[-1] == "ValueError: x"
    assert len(last_lines(text).splitlines()) == 20
