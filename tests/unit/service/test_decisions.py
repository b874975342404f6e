"""What the reconciler decides about what runs, without clock, database or cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cluster.launcher import DriverStatus, Phase
from service.control.decisions import (
    Launch,
    Move,
    Policy,
    Seen,
    Stop,
    backoff_s,
    decide,
    last_lines,
    needs_asking,
    overdue,
    silence_s,
)
from service.jobs.records import AttemptRecord, CancelMode, JobRecord, LiveJob, OverdueJob
from service.jobs.states import ACTIVE_STATES, LIVE_STATES, JobState, Reason, may_become
from trainer.run_schema import AttemptFailure, Progress
from trainer.spec import JobSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Policy(
    cancel_grace_s=10,
    cancel_checkpoint_s=100,
    lost_after_s=60,
    start_timeout_s=900,
    recovery_timeout_s=3600,
    linger_s=30,
    retry_backoff_s=2,
    retry_backoff_max_s=300,
)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def live(
    state: JobState, *, beat_s: float | None = 1, submitted_s: float | None = 100, number: int = 1, **changes: Any
) -> LiveJob:
    spec = {"name": "job", "data": {"manifest": "/m", "batch_size": 64}, **changes.pop("spec", {})}
    default_reason = Reason.USER_CANCELLED if state is JobState.CANCELLING else Reason.SUBMITTED
    job = JobRecord(
        id="0" * 26,
        tenant="default",
        spec=JobSpec.model_validate(spec),
        state=state,
        state_since=ago(changes.pop("since_s", 100)),
        reason=changes.pop("reason", default_reason),
        message=None,
        attempt=number,
        num_failures=changes.pop("num_failures", 0),
        progress=changes.pop("progress", None),
        mlflow_run_id=None,
        mlflow_experiment_id=None,
        created_at=ago(1000),
        updated_at=ago(1),
        started_at=None,
        ended_at=None,
        cancel_mode=changes.pop("cancel_mode", None),
    )
    assert not changes
    times = [None if seconds is None else ago(seconds) for seconds in (submitted_s, beat_s)]
    return LiveJob(job, AttemptRecord(job.id, number, "hash", ago(1000), *times))


def decided(job: LiveJob, phase: Phase | None, **seen: Any) -> tuple[object, ...]:
    silent_s = seen.pop("silent_s", silence_s(job, NOW, listening_since=ago(10_000)))
    driver = None if phase is None else DriverStatus(phase, "words")
    return decide(job, Seen(driver, silent_s, **seen), NOW, POLICY)


def the_move(actions: tuple[object, ...]) -> Move:
    [move] = actions
    assert isinstance(move, Move)
    return move


def failure(**changes: Any) -> AttemptFailure:
    said = {"reason": "worker_lost", "message": "gone", "traceback": "a\nb", "rank": 1, "is_final": False}
    return AttemptFailure.model_validate(said | changes)


def progress(phase: str) -> Progress:
    return Progress.model_validate({"phase": phase, "epoch": 1, "num_epochs": 2, "step": 1, "num_steps": 2})


ENDED = [Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED, Phase.KILLED, Phase.LOST]


@pytest.mark.parametrize("phase", ENDED)
@pytest.mark.parametrize("state", [JobState.STARTING, JobState.RUNNING])
def test_a_complete_result_is_success_whatever_ray_says(state: JobState, phase: Phase) -> None:
    assert decided(live(state), phase, outcome="succeeded") == (Move(JobState.SUCCEEDED, Reason.RESULT_COMPLETE),)


def test_rays_word_alone_is_no_success() -> None:
    [move] = decided(live(JobState.RUNNING), Phase.SUCCEEDED, result_problem="model.pt is damaged")
    assert move == Move(JobState.FAILED, Reason.RESULT_MISSING, "model.pt is damaged")


@pytest.mark.parametrize(("phase", "reason"), [(Phase.LOST, Reason.HEAD_LOST), (Phase.KILLED, Reason.DRIVER_LOST)])
def test_a_lost_attempt_is_followed_by_another_after_a_while(phase: Phase, reason: Reason) -> None:
    move = the_move(decided(live(JobState.RUNNING, num_failures=1), phase))
    in_4_s = NOW + timedelta(seconds=4)
    assert move == Move(JobState.RECOVERING, reason, "words", not_before=in_4_s)


@pytest.mark.parametrize(("num_failures", "state"), [(2, JobState.RECOVERING), (3, JobState.FAILED)])
def test_up_to_max_failures(num_failures: int, state: JobState) -> None:
    move = the_move(decided(live(JobState.RUNNING, num_failures=num_failures), Phase.LOST))
    assert move.new is state
    assert ("max_failures is 3" in (move.message or "")) == (state is JobState.FAILED)


def test_the_wait_doubles_up_to_a_limit() -> None:
    assert [backoff_s(number, POLICY) for number in (0, 1, 2, 7, 8, 10_000)] == [2, 4, 8, 256, 300, 300]


def test_an_attempt_says_itself_why_it_failed() -> None:
    move = the_move(decided(live(JobState.RUNNING), Phase.FAILED, failure=failure()))
    assert (move.new, move.reason) == (JobState.RECOVERING, Reason.WORKER_LOST)
    assert move.message == "rank 1: gone\na\nb"
    told = failure(reason="out_of_memory", rank=None, traceback="")
    move = the_move(decided(live(JobState.RUNNING, num_failures=3), Phase.KILLED, failure=told))
    assert (move.new, move.reason) == (JobState.FAILED, Reason.OUT_OF_MEMORY)
    assert (move.message or "").startswith("gone\nIt was started again 3 times")


def test_what_would_fail_again_is_not_tried_again() -> None:
    said = failure(reason="non_finite_loss", is_final=True)
    move = the_move(decided(live(JobState.RUNNING), Phase.FAILED, failure=said))
    assert (move.new, move.reason) == (JobState.FAILED, Reason.NON_FINITE_LOSS)


def test_an_error_of_the_driver_is_not_repeated() -> None:
    assert decided(live(JobState.RUNNING), Phase.FAILED) == (Move(JobState.FAILED, Reason.ATTEMPT_FAILED, "words"),)


def test_stopped_by_somebody_else() -> None:
    move = the_move(decided(live(JobState.RUNNING), Phase.STOPPED))
    assert (move.new, move.reason) == (JobState.FAILED, Reason.STOPPED_OUTSIDE)


def test_stopped_by_us_who_were_killed_before_we_could_say_so() -> None:
    job = live(JobState.RUNNING)
    noted = replace(job.attempt, reason=Reason.HEARTBEAT_LOST, message="silent for long")
    silent = replace(job, attempt=replace(noted, heartbeat_at=ago(61)))
    assert decided(silent, Phase.STOPPED) == (Move(JobState.FAILED, Reason.HEARTBEAT_LOST, "silent for long"),)
    lives_on = replace(job, attempt=replace(noted, heartbeat_at=ago(5)))
    assert the_move(decided(lives_on, Phase.STOPPED)).reason is Reason.STOPPED_OUTSIDE


def test_an_attempt_that_ray_does_not_take_is_given_up_after_a_while() -> None:
    waits = live(JobState.STARTING, submitted_s=None, beat_s=None)
    assert decided(waits, None, silent_s=900) == (Launch(),)
    lost, stop = decided(waits, None, silent_s=901)
    assert isinstance(lost, Move)
    assert (lost.new, lost.reason, stop) == (JobState.RECOVERING, Reason.SUBMIT_FAILED, Stop(1))
    assert decided(waits, Phase.LOST, silent_s=901) == (lost, stop)
    assert decided(waits, Phase.PENDING, silent_s=901) == (Launch(),), "it has taken it, which is to be noted"
    done = the_move(decided(waits, None, silent_s=901, outcome="succeeded"))
    assert done.new is JobState.SUCCEEDED
    last, stop = decided(live(JobState.STARTING, submitted_s=None, beat_s=None, num_failures=3), None, silent_s=901)
    assert isinstance(last, Move)
    assert (last.new, last.reason, stop) == (JobState.FAILED, Reason.SUBMIT_FAILED, Stop(1))


def test_an_attempt_that_stopped_by_itself_is_resumed() -> None:
    move = the_move(decided(live(JobState.RUNNING), Phase.SUCCEEDED, outcome="stopped"))
    assert (move.new, move.reason) == (JobState.RECOVERING, Reason.HEARTBEAT_LOST)


def test_silence_while_ray_is_away() -> None:
    assert decided(live(JobState.RUNNING, beat_s=59), None) == ()
    move = the_move(decided(live(JobState.RUNNING, beat_s=61), None))
    assert (move.new, move.reason) == (JobState.RECOVERING, Reason.HEAD_LOST)


def test_a_silent_attempt_that_has_ended_well_or_says_why_not_is_believed_without_ray() -> None:
    silent = live(JobState.RUNNING, beat_s=61, num_failures=3)
    done = Move(JobState.SUCCEEDED, Reason.RESULT_COMPLETE)
    assert decided(silent, None, outcome="succeeded") == (done,)
    assert decided(silent, Phase.RUNNING, outcome="succeeded", result_age_s=1) == (Stop(1), done)
    said = failure(reason="non_finite_loss", is_final=True)
    assert the_move(decided(silent, None, failure=said)).reason is Reason.NON_FINITE_LOSS
    asked = live(JobState.CANCELLING, beat_s=61)
    assert the_move(decided(asked, None, outcome="succeeded")).new is JobState.SUCCEEDED


def test_a_driver_that_lives_but_is_silent_is_given_up() -> None:
    assert decided(live(JobState.RUNNING, beat_s=59), Phase.RUNNING) == ()
    move, stop = decided(live(JobState.RUNNING, beat_s=61), Phase.RUNNING)
    assert isinstance(move, Move)
    assert (move.new, move.reason, stop) == (JobState.RECOVERING, Reason.HEARTBEAT_LOST, Stop(1))
    # Nobody looks at a job that has ended: there the driver must be gone first.
    stop, move = decided(live(JobState.RUNNING, beat_s=61, num_failures=3), Phase.RUNNING)
    assert isinstance(move, Move)
    assert (move.new, move.reason, stop) == (JobState.FAILED, Reason.HEARTBEAT_LOST, Stop(1))


def test_starting_may_take_longer() -> None:
    starting = live(JobState.STARTING, beat_s=None, submitted_s=899, since_s=900)
    for phase in (Phase.PENDING, Phase.RUNNING):
        assert decided(starting, phase) == ()
        move, stop = decided(live(JobState.STARTING, beat_s=None, submitted_s=901, since_s=902), phase)
        assert isinstance(move, Move)
        assert (move.new, move.reason, stop) == (JobState.RECOVERING, Reason.HEARTBEAT_LOST, Stop(1))


def test_silence_counts_only_while_somebody_listens() -> None:
    silent = live(JobState.RUNNING, beat_s=500, since_s=600, submitted_s=600)
    assert silence_s(silent, NOW, listening_since=ago(1000)) == 500
    assert silence_s(silent, NOW, listening_since=ago(3)) == 3
    asked = live(JobState.CANCELLING, beat_s=500, since_s=1, submitted_s=600)
    assert silence_s(asked, NOW, listening_since=ago(1000)) == 500


def test_what_was_not_handed_over_is_handed_over_again() -> None:
    assert decided(live(JobState.STARTING, submitted_s=None, beat_s=None), Phase.LOST) == (Launch(),)


def test_a_driver_that_lingers_after_its_result_is_ended() -> None:
    assert decided(live(JobState.RUNNING), Phase.RUNNING, outcome="succeeded", result_age_s=29) == ()
    done = Move(JobState.SUCCEEDED, Reason.RESULT_COMPLETE)
    assert decided(live(JobState.RUNNING), Phase.RUNNING, outcome="succeeded", result_age_s=31) == (Stop(1), done)


def test_cancelling_waits_for_the_attempt_and_then_ends_it() -> None:
    assert decided(live(JobState.CANCELLING, since_s=9), Phase.RUNNING) == ()
    assert decided(live(JobState.CANCELLING, since_s=11), Phase.RUNNING) == (Stop(1),)
    assert decided(live(JobState.CANCELLING, since_s=1, beat_s=None), Phase.PENDING) == (Stop(1),)


def test_an_attempt_that_was_asked_to_stop_and_has_published_its_result_is_not_waited_for() -> None:
    asked = live(JobState.CANCELLING, since_s=1)
    cancelled = Move(JobState.CANCELLED, Reason.USER_CANCELLED)
    assert decided(asked, Phase.RUNNING, outcome="stopped", result_age_s=0.1) == (Stop(1), cancelled)
    stop, move = decided(asked, Phase.RUNNING, outcome="succeeded", result_age_s=0.1)
    assert stop == Stop(1)
    assert isinstance(move, Move)
    assert move.new is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("phase", "since_s", "beat_s", "waits"),
    [
        ("training", 11, 1, False),
        ("finishing", 11, 1, True),
        ("recording", 99, 1, True),
        ("evaluating", 101, 1, False),
        ("finishing", 99, 61, False),
    ],
)
def test_cancelling_waits_longer_for_a_checkpoint(phase: str, since_s: float, beat_s: float, waits: bool) -> None:
    job = live(JobState.CANCELLING, since_s=since_s, beat_s=beat_s, submitted_s=900, progress=progress(phase))
    assert decided(job, Phase.RUNNING) == (() if waits else (Stop(1),))


def test_cancelling_now_does_not_wait() -> None:
    job = live(JobState.CANCELLING, since_s=0, progress=progress("finishing"), cancel_mode="now")
    assert decided(job, Phase.RUNNING) == (Stop(1),)


@pytest.mark.parametrize("phase", ENDED)
def test_cancelling_ends(phase: Phase) -> None:
    assert decided(live(JobState.CANCELLING), phase) == (Move(JobState.CANCELLED, Reason.USER_CANCELLED),)
    assert the_move(decided(live(JobState.CANCELLING), phase, outcome="succeeded")).new is JobState.SUCCEEDED
    late = live(JobState.CANCELLING, reason=Reason.DEADLINE)
    assert decided(late, phase, failure=failure()) == (Move(JobState.FAILED, Reason.DEADLINE),)


def test_cancelling_ends_without_ray_too() -> None:
    assert decided(live(JobState.CANCELLING, beat_s=10), None) == ()
    assert decided(live(JobState.CANCELLING, beat_s=61), None) == (Move(JobState.CANCELLED, Reason.USER_CANCELLED),)


def test_cancelling_a_job_that_recovered_ends_the_attempt_before() -> None:
    job = live(JobState.CANCELLING, number=2, submitted_s=None, beat_s=None)
    assert decided(job, Phase.LOST) == (Stop(1), Move(JobState.CANCELLED, Reason.USER_CANCELLED))


@pytest.mark.parametrize("state", sorted(LIVE_STATES - {JobState.CANCELLING}))
def test_a_deadline_ends_what_waits_and_stops_what_runs(state: JobState) -> None:
    move = overdue(OverdueJob("0" * 26, state, 1, NOW))
    assert move.new is (JobState.FAILED if state is JobState.QUEUED else JobState.CANCELLING)
    assert move.reason is Reason.DEADLINE
    assert "2026-01-01 00:00:00 UTC" in (move.message or "")
    assert may_become(state, move.new)


SECONDS = st.none() | st.floats(0, 2000)


@given(
    state=st.sampled_from(sorted(ACTIVE_STATES)),
    phase=st.none() | st.sampled_from(Phase),
    outcome=st.sampled_from([None, "succeeded", "stopped"]),
    beat_s=SECONDS,
    submitted_s=SECONDS,
    number=st.integers(1, 3),
    num_failures=st.integers(0, 4),
    said=st.none() | st.builds(failure, is_final=st.booleans()),
    cancel_mode=st.sampled_from([None, "graceful", "now"]),
    result_age_s=st.floats(0, 100),
)
def test_every_move_is_legal_and_every_end_leaves_no_driver(
    *,
    state: JobState,
    phase: Phase | None,
    outcome: str | None,
    beat_s: float | None,
    submitted_s: float | None,
    number: int,
    num_failures: int,
    said: AttemptFailure | None,
    cancel_mode: CancelMode | None,
    result_age_s: float,
) -> None:
    job = live(
        state,
        beat_s=beat_s,
        submitted_s=submitted_s,
        number=number,
        num_failures=num_failures,
        cancel_mode=cancel_mode,
    )
    actions = decided(job, phase, outcome=outcome, result_age_s=result_age_s, failure=said)
    moves = [action for action in actions if isinstance(action, Move)]
    assert len(moves) <= 1
    for move in moves:
        assert may_become(state, move.new)
        assert (move.not_before is not None) == (move.new is JobState.RECOVERING)
        if move.new is JobState.RECOVERING:
            assert num_failures < job.job.spec.fault_tolerance.max_failures
        elif phase in {Phase.PENDING, Phase.RUNNING}:
            assert actions.index(Stop(number)) < actions.index(move)


def test_ray_is_not_asked_while_heartbeats_come() -> None:
    assert not needs_asking(live(JobState.RUNNING, beat_s=1), NOW, ends=False)
    assert needs_asking(live(JobState.RUNNING, beat_s=1), NOW, ends=True)
    assert needs_asking(live(JobState.RUNNING, beat_s=4), NOW, ends=False)
    assert needs_asking(live(JobState.STARTING, beat_s=None), NOW, ends=False)


def test_the_last_lines_hold_the_error() -> None:
    text = "\n".join(f"line {number}" for number in range(100)) + "\nValueError: x\n"
    assert last_lines(text).splitlines()[-1] == "ValueError: x"
    assert len(last_lines(text).splitlines()) == 20
