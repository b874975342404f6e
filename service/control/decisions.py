"""What to do about a job that was started: pure functions of what the store says and what the cluster says.

No I/O, no clock. `max_failures` counts attempts, each once, whatever broke in it: a job has one attempt more than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from service.cluster.launcher import DriverStatus, Phase
from service.jobs.records import JobRecord, LiveJob, OverdueJob
from service.jobs.states import JobState, Reason
from trainer.run_schema import AttemptFailure

FRESH_S = 3.0
"""A job whose last heartbeat is younger than this runs; Ray is not asked about it."""

_MESSAGE_LINES = 20
_LIVES: Final = frozenset({Phase.PENDING, Phase.RUNNING})
_SAVING: Final = frozenset({"evaluating", "recording", "finishing"})
"""Phases of an attempt that end in a checkpoint."""


@dataclass(frozen=True)
class Policy:
    """How patient to be; see Settings."""

    cancel_grace_s: float
    cancel_checkpoint_s: float
    lost_after_s: float
    start_timeout_s: float
    recovery_timeout_s: float
    linger_s: float
    retry_backoff_s: float
    retry_backoff_max_s: float


@dataclass(frozen=True)
class Seen:
    """What was found out about an attempt."""

    driver: DriverStatus | None
    """What the cluster says; None where it does not answer."""
    silent_s: float
    """For how long nothing was heard of it, though somebody listened: see `silence_s`."""
    outcome: Literal["succeeded", "stopped"] | None = None
    """What the attempt's verified result says; None where there is none."""
    result_age_s: float | None = None
    """Seconds since result.json was written."""
    result_problem: str | None = None
    """Why there is no verified result."""
    failure: AttemptFailure | None = None
    """What the attempt itself says of why it failed; None where it says nothing."""


@dataclass(frozen=True)
class Move:
    """Change the job's state."""

    new: JobState
    reason: Reason
    message: str | None = None
    not_before: datetime | None = None
    """To RECOVERING: when the next attempt may start at the earliest."""


@dataclass(frozen=True)
class Launch:
    """Hand the current attempt to the cluster (again: it is safe to do so twice)."""


@dataclass(frozen=True)
class Stop:
    """Have the cluster end an attempt's driver."""

    attempt: int


Action = Move | Launch | Stop


def lives(driver: DriverStatus | None) -> bool:
    """Whether the cluster says that a driver runs, or is about to."""
    return driver is not None and driver.phase in _LIVES


def needs_asking(live: LiveJob, now: datetime, ends: bool) -> bool:
    """Whether the cluster must be asked about a job: not while its heartbeats come, unless its files say it `ends`."""
    if live.job.state is not JobState.RUNNING or ends or live.attempt.heartbeat_at is None:
        return True
    return (now - live.attempt.heartbeat_at).total_seconds() > FRESH_S


def silence_s(live: LiveJob, now: datetime, listening_since: datetime) -> float:
    """Seconds without a sign of life. Time in which nobody listened does not count: the service was away, or its
    database, or the machine slept; attempts that went on meanwhile will be heard of soon."""
    signs = [live.attempt.heartbeat_at, live.attempt.submitted_at, live.attempt.created_at, listening_since]
    if live.job.state is not JobState.CANCELLING:  # asking for the stop was our sign, not its
        signs.append(live.job.state_since)
    return (now - max(sign for sign in signs if sign is not None)).total_seconds()


def decide(live: LiveJob, seen: Seen, now: datetime, policy: Policy) -> tuple[Action, ...]:
    """What to do about an attempt that was started."""
    if live.job.state is JobState.CANCELLING:
        return _decide_cancelling(live, seen, now, policy)
    if live.attempt.submitted_at is None:
        return _decide_unsubmitted(live, seen, now, policy)
    if seen.driver is None:
        return _decide_unanswered(live, seen, now, policy)
    if lives(seen.driver):
        return _decide_living(live, seen, seen.driver, now, policy)
    return (_ended(live, seen, seen.driver, now, policy),)


def _decide_unsubmitted(live: LiveJob, seen: Seen, now: datetime, policy: Policy) -> tuple[Action, ...]:
    """Of an attempt that the cluster has not accepted, as far as is known: it is handed over again, for a while."""
    is_known = seen.driver is not None and seen.driver.phase is not Phase.LOST
    if is_known or seen.silent_s <= policy.start_timeout_s:
        return (Launch(),)  # if Ray has it, that is to adopt it
    if seen.outcome is not None:
        return (_ended(live, seen, DriverStatus(Phase.LOST), now, policy),)
    message = f"Ray has not taken the attempt for {seen.silent_s:.0f} s."
    lost = _again_or_failed(live.job, Reason.SUBMIT_FAILED, message, now, policy)
    return lost, Stop(live.attempt.number)  # should it have taken it after all; that it does not answer changes nothing


def _decide_unanswered(live: LiveJob, seen: Seen, now: datetime, policy: Policy) -> tuple[Action, ...]:
    """Of an attempt about which the cluster cannot be asked: once it is silent, it counts as lost with its head."""
    if seen.silent_s <= policy.lost_after_s:
        return ()
    message = f"Ray does not answer, and the attempt has been silent for {seen.silent_s:.0f} s."
    return (_ended(live, seen, DriverStatus(Phase.LOST, message), now, policy),)


def _decide_living(
    live: LiveJob, seen: Seen, driver: DriverStatus, now: datetime, policy: Policy
) -> tuple[Action, ...]:
    """Of an attempt whose driver lives: whether it lingers after its result, or rank 0 has been silent for too long."""
    stop = Stop(live.attempt.number)
    if seen.outcome is not None:
        lingers = (seen.result_age_s or 0) > policy.linger_s or seen.silent_s > policy.lost_after_s
        return (stop, _ended(live, seen, driver, now, policy)) if lingers else ()
    if seen.silent_s <= _patience_s(live.job, policy):
        return ()
    what = "no rank has begun to train" if live.job.state is JobState.STARTING else "nothing was heard of rank 0"
    message = f"The attempt's driver lives, but {what} for {seen.silent_s:.0f} s."
    lost = _again_or_failed(live.job, Reason.HEARTBEAT_LOST, message, now, policy)
    # Killed in between: the next attempt's launch stops the driver too, but after a job's end nobody would.
    return (lost, stop) if lost.new is JobState.RECOVERING else (stop, lost)


def _patience_s(job: JobRecord, policy: Policy) -> float:
    """For how long an attempt whose driver lives may be silent."""
    return policy.start_timeout_s if job.state is JobState.STARTING else policy.lost_after_s


def _decide_cancelling(live: LiveJob, seen: Seen, now: datetime, policy: Policy) -> tuple[Action, ...]:
    number, stopped = live.attempt.number, _stopped(live.job)
    if seen.driver is None and seen.silent_s <= policy.lost_after_s:
        return ()
    if seen.outcome == "succeeded":
        stopped = Move(JobState.SUCCEEDED, Reason.RESULT_COMPLETE, "It had ended before the stop reached it.")
    if lives(seen.driver):
        if seen.outcome is not None:  # all it had is published, and its exit need not be waited for
            return Stop(number), stopped
        return () if _may_finish(live, seen, now, policy) else (Stop(number),)
    if seen.driver is not None and number > 1 and live.attempt.submitted_at is None:
        return Stop(number - 1), stopped  # it was recovering: the driver before may live yet
    return (stopped,)


def _may_finish(live: LiveJob, seen: Seen, now: datetime, policy: Policy) -> bool:
    """Whether an attempt that was asked to stop gets more time for its last checkpoint."""
    if live.job.cancel_mode == "now" or live.attempt.heartbeat_at is None:  # or nobody hears our "stop"
        return False
    waited_s = (now - live.job.state_since).total_seconds()
    if waited_s <= policy.cancel_grace_s:
        return True
    saves = live.job.progress is not None and live.job.progress.phase in _SAVING
    return saves and waited_s <= policy.cancel_checkpoint_s and seen.silent_s <= policy.lost_after_s


def _stopped(job: JobRecord) -> Move:
    """What a job becomes that was asked to stop: why it was asked says so."""
    state = JobState.FAILED if job.reason is Reason.DEADLINE else JobState.CANCELLED
    return Move(state, job.reason, job.message)


def _ended(live: LiveJob, seen: Seen, driver: DriverStatus, now: datetime, policy: Policy) -> Move:
    """What becomes of a job whose driver has ended: its result says so, then itself, and last the cluster."""
    if seen.outcome == "succeeded":
        return Move(JobState.SUCCEEDED, Reason.RESULT_COMPLETE)
    if seen.outcome == "stopped":
        message = "The attempt stopped by itself, because it could not reach the service."
        return _again_or_failed(live.job, Reason.HEARTBEAT_LOST, message, now, policy)
    if seen.failure is not None:
        return _failed(live.job, seen.failure, now, policy)
    return _left(live, seen, driver, now, policy)


def _left(live: LiveJob, seen: Seen, driver: DriverStatus, now: datetime, policy: Policy) -> Move:
    """What becomes of a job whose attempt has left neither a result nor a word of why."""
    match driver.phase:
        case Phase.LOST:
            message = driver.message or "Ray does not know the attempt any more."
            return _again_or_failed(live.job, Reason.HEAD_LOST, message, now, policy)
        case Phase.KILLED:
            message = last_lines(driver.message or "The driver was killed.")
            reason = Reason.OUT_OF_MEMORY if driver.is_out_of_memory else Reason.DRIVER_LOST
            return _again_or_failed(live.job, reason, message, now, policy)
        case Phase.FAILED:
            return Move(JobState.FAILED, Reason.ATTEMPT_FAILED, last_lines(driver.message or "The driver failed."))
        case Phase.STOPPED if live.attempt.reason is not None and _was_silent(live, now, policy):
            # By us, who were killed before we could say so.
            return Move(JobState.FAILED, live.attempt.reason, live.attempt.message)
        case Phase.STOPPED:
            return Move(JobState.FAILED, Reason.STOPPED_OUTSIDE, "The driver was stopped from outside of Hush.")
        case _:
            return Move(JobState.FAILED, Reason.RESULT_MISSING, seen.result_problem)


def _was_silent(live: LiveJob, now: datetime, policy: Policy) -> bool:
    """Whether the last heartbeat is so old that it was for its silence that we stopped the attempt."""
    beat = live.attempt.heartbeat_at
    return beat is None or (now - beat).total_seconds() > policy.lost_after_s


def _failed(job: JobRecord, failure: AttemptFailure, now: datetime, policy: Policy) -> Move:
    """By what the attempt itself says of its failure."""
    reason = Reason(failure.reason)
    where = "" if failure.rank is None else f"rank {failure.rank}: "
    message = f"{where}{failure.message}\n{last_lines(failure.traceback)}".rstrip()
    if failure.is_final:
        return Move(JobState.FAILED, reason, message)
    return _again_or_failed(job, reason, message, now, policy)


def _again_or_failed(job: JobRecord, reason: Reason, message: str, now: datetime, policy: Policy) -> Move:
    """The next attempt after a while, if there is one left."""
    max_failures = job.spec.fault_tolerance.max_failures
    if job.num_failures >= max_failures:
        message = f"{message}\nIt was started again {job.num_failures} times, and max_failures is {max_failures}."
        return Move(JobState.FAILED, reason, message)
    not_before = now + timedelta(seconds=backoff_s(job.num_failures, policy))
    return Move(JobState.RECOVERING, reason, message, not_before)


def backoff_s(num_failures: int, policy: Policy) -> float:
    """Seconds to wait before the next attempt, after so many that were lost before this one: doubling, to a limit."""
    return min(policy.retry_backoff_max_s, policy.retry_backoff_s * 2.0 ** min(num_failures, 64))


def overdue(job: OverdueJob) -> Move:
    """What becomes of a job whose deadline has passed: one that waits has failed, one that runs has to stop first."""
    message = f"It had not ended by its deadline, {job.deadline_at:%Y-%m-%d %H:%M:%S} UTC (scheduling.deadline_s)."
    new = JobState.FAILED if job.state is JobState.QUEUED else JobState.CANCELLING
    return Move(new, Reason.DEADLINE, message)


def last_lines(text: str) -> str:
    """The last lines of a long message, where an exception's name stands."""
    lines = text.strip().splitlines()
    return "\n".join(lines[-_MESSAGE_LINES:])
