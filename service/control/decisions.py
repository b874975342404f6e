"""What to do about each job: pure functions of what the store says and what the cluster says. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from service.cluster.launcher import DriverStatus, Node, Phase
from service.jobs.records import JobRecord, LiveJob
from service.jobs.states import JobState, Reason
from trainer.spec import ResourcesSpec

FRESH_S = 3.0
"""A job whose last heartbeat is younger than this runs; Ray is not asked about it."""

_MESSAGE_LINES = 20


@dataclass(frozen=True)
class Policy:
    """How patient to be; see Settings."""

    cancel_grace_s: float
    lost_after_s: float
    linger_s: float


@dataclass(frozen=True)
class Seen:
    """What was found out about an attempt."""

    driver: DriverStatus | None
    """What the cluster says; None where it does not answer."""
    outcome: Literal["succeeded", "stopped"] | None = None
    """What the attempt's verified result says; None where there is none."""
    result_age_s: float | None = None
    """Seconds since result.json was written."""
    result_problem: str | None = None
    """Why there is no verified result."""


@dataclass(frozen=True)
class Move:
    """Change the job's state."""

    new: JobState
    reason: Reason
    message: str | None = None
    next_attempt: bool = False


@dataclass(frozen=True)
class Launch:
    """Hand the current attempt to the cluster (again: it is safe to do so twice)."""


@dataclass(frozen=True)
class Stop:
    """Have the cluster end the current attempt's driver."""


Action = Move | Launch | Stop


def needs_asking(live: LiveJob, now: datetime, has_result: bool) -> bool:
    """Whether the cluster must be asked about a job: not while it waits, nor while its heartbeats come."""
    match live.job.state:
        case JobState.QUEUED | JobState.RECOVERING:
            return False
        case JobState.RUNNING:
            return has_result or _silent_s(live, now) > FRESH_S
        case _:
            return True


def decide(live: LiveJob, seen: Seen, now: datetime, policy: Policy) -> tuple[Action, ...]:
    """What to do about an attempt that was started."""
    if live.job.state is JobState.CANCELLING:
        return _decide_cancelling(live, seen, now, policy)
    if live.attempt.submitted_at is None:
        return (Launch(),)
    if seen.driver is None:
        silent_s = _silent_s(live, now)
        message = f"Ray does not answer, and the attempt has been silent for {silent_s:.0f} s."
        return (_lost(live.job, message),) if silent_s > policy.lost_after_s else ()
    if seen.driver.phase in {Phase.PENDING, Phase.RUNNING}:
        if seen.outcome is None or (seen.result_age_s or 0) <= policy.linger_s:
            return ()
        return (Stop(), _ended(live.job, seen, seen.driver))
    return (_ended(live.job, seen, seen.driver),)


def _decide_cancelling(live: LiveJob, seen: Seen, now: datetime, policy: Policy) -> tuple[Action, ...]:
    driver = seen.driver
    stopped = _stopped(live.job)
    if driver is None:
        return (stopped,) if _silent_s(live, now) > policy.lost_after_s else ()
    if driver.phase not in {Phase.PENDING, Phase.RUNNING}:
        done = Move(JobState.SUCCEEDED, Reason.RESULT_COMPLETE, "It had ended before the stop reached it.")
        return (done,) if seen.outcome == "succeeded" else (stopped,)
    waited_s = (now - live.job.state_since).total_seconds()
    listens = live.attempt.heartbeat_at is not None  # else nobody hears our "stop"
    return () if listens and waited_s <= policy.cancel_grace_s else (Stop(),)


def _stopped(job: JobRecord) -> Move:
    """What a job becomes that was asked to stop: why it was asked says so."""
    state = JobState.FAILED if job.reason is Reason.DEADLINE else JobState.CANCELLED
    return Move(state, job.reason, job.message)


def _ended(job: JobRecord, seen: Seen, driver: DriverStatus) -> Move:
    """What becomes of a job whose driver has ended: its result says so, not the cluster."""
    if seen.outcome == "succeeded":
        return Move(JobState.SUCCEEDED, Reason.RESULT_COMPLETE)
    if seen.outcome == "stopped":
        return _lost(job, "The attempt stopped by itself, because it could not reach the service.")
    match driver.phase:
        case Phase.LOST:
            return _lost(job, driver.message or "Ray does not know the attempt any more.")
        case Phase.FAILED:
            return Move(JobState.FAILED, Reason.ATTEMPT_FAILED, last_lines(driver.message or "The driver failed."))
        case Phase.STOPPED:
            return Move(JobState.FAILED, Reason.ATTEMPT_FAILED, "The driver was stopped from outside of Hush.")
        case _:
            return Move(JobState.FAILED, Reason.RESULT_MISSING, seen.result_problem)


def _lost(job: JobRecord, message: str) -> Move:
    max_failures = job.spec.fault_tolerance.max_failures
    if job.num_failures >= max_failures:
        message = f"{message} It was restarted {job.num_failures} times, and max_failures is {max_failures}."
        return Move(JobState.FAILED, Reason.HEAD_LOST, message)
    return Move(JobState.RECOVERING, Reason.HEAD_LOST, message, next_attempt=True)


def _silent_s(live: LiveJob, now: datetime) -> float:
    """Seconds since the last sign of life."""
    signs = (live.attempt.heartbeat_at, live.attempt.submitted_at, live.job.state_since)
    if live.job.state is JobState.CANCELLING:  # asking for the stop was our sign, not its
        signs = (live.attempt.heartbeat_at, live.attempt.submitted_at, live.attempt.created_at)
    return (now - max(sign for sign in signs if sign is not None)).total_seconds()


def last_lines(text: str) -> str:
    """The last lines of a long message, where an exception's name stands."""
    lines = text.strip().splitlines()
    return "\n".join(lines[-_MESSAGE_LINES:])


# -------------------------------------------------------------------------------------------------------------- queue


def plan_queue(lives: Sequence[LiveJob], nodes: Sequence[Node]) -> list[tuple[LiveJob, Move]]:
    """Which waiting jobs to start, and which to refuse because the whole cluster is too small for them.

    Jobs that recover go first, then the oldest. A job that must wait keeps what it waits for from younger ones, so that
    a stream of small jobs cannot starve a large one; what it does not need, they may have.
    """
    if not nodes:
        return []  # a head that has just started knows no machine yet, not even its own
    free_cpus, free_gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
    waiting = []
    for live in lives:
        if live.job.state in {JobState.QUEUED, JobState.RECOVERING}:
            waiting.append(live)
        else:
            cpus, gpus = _total(live.job.spec.resources)
            free_cpus, free_gpus = free_cpus - cpus, free_gpus - gpus
    moves = []
    for live in sorted(waiting, key=lambda waiter: waiter.job.state is JobState.QUEUED):
        recovers = live.job.state is JobState.RECOVERING
        resources = live.job.spec.resources
        fits_at_all = num_workers_that_fit(nodes, resources) >= resources.num_workers
        if not fits_at_all:
            if not recovers:  # a cluster that has just lost a machine may get it back
                moves.append((live, Move(JobState.FAILED, Reason.NEVER_FITS, _too_large(nodes, resources))))
            continue
        cpus, gpus = _total(resources)
        if cpus <= free_cpus + 1e-6 and (gpus == 0 or gpus <= free_gpus + 1e-6):
            reason = Reason.NEW_ATTEMPT if recovers else Reason.ATTEMPT_SUBMITTED
            moves.append((live, Move(JobState.STARTING, reason)))
        free_cpus, free_gpus = free_cpus - cpus, free_gpus - gpus
    return moves


def num_workers_that_fit(nodes: Sequence[Node], resources: ResourcesSpec) -> int:
    """How many of a job's workers the empty cluster holds; one worker never spans two machines."""
    return sum(_workers_on(node, resources) for node in nodes)


def _workers_on(node: Node, resources: ResourcesSpec) -> int:
    by_cpus = int((node.num_cpus + 1e-6) // resources.cpus_per_worker)
    if not resources.gpus_per_worker:
        return by_cpus
    return min(by_cpus, int((node.num_gpus + 1e-6) // resources.gpus_per_worker))


def _total(resources: ResourcesSpec) -> tuple[float, float]:
    """CPUs and GPUs of all workers; the driver and Ray Train's controller take none."""
    return resources.num_workers * resources.cpus_per_worker, resources.num_workers * resources.gpus_per_worker


def _too_large(nodes: Sequence[Node], resources: ResourcesSpec) -> str:
    machines = ", ".join(f"{node.num_cpus:g} CPUs and {node.num_gpus:g} GPUs" for node in nodes[:8])
    more = f" and {len(nodes) - 8} more machines" if len(nodes) > 8 else ""
    return (
        f"The job asks for num_workers {resources.num_workers} with cpus_per_worker {resources.cpus_per_worker:g} and"
        f" gpus_per_worker {resources.gpus_per_worker}; the cluster has {machines}{more}, which holds"
        f" {num_workers_that_fit(nodes, resources)} such workers."
    )
