"""The life of a job: its states and the transitions between them. Pure: no clock, no database, no network."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "QUEUED"
    """Accepted and stored; waits until the cluster has room."""
    STARTING = "STARTING"
    """An attempt was handed to Ray; no rank has trained a step yet."""
    RUNNING = "RUNNING"
    """Rank 0 sends heartbeats."""
    RECOVERING = "RECOVERING"
    """The attempt was lost (worker, driver or head died); a new one starts from the last checkpoint."""
    CANCELLING = "CANCELLING"
    """A stop was asked for; the attempt is being wound down. The reason says what the job becomes then."""
    SUCCEEDED = "SUCCEEDED"
    """The attempt's result manifest is there and its checksums hold."""
    FAILED = "FAILED"
    """No attempt is left to try; the reason says why."""
    CANCELLED = "CANCELLED"
    """Stopped on request; what it had by then is kept."""


TERMINAL_STATES: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
"""States that never change again."""

LIVE_STATES: Final = frozenset(JobState) - TERMINAL_STATES

WAITING_STATES: Final = frozenset({JobState.QUEUED, JobState.RECOVERING})
"""States in which a job waits for its turn."""

ACTIVE_STATES: Final = LIVE_STATES - WAITING_STATES
"""States in which a job may have a driver on the cluster, and takes its room."""

TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.CANCELLED, JobState.FAILED}),
    JobState.STARTING: frozenset(
        {JobState.RUNNING, JobState.RECOVERING, JobState.CANCELLING, JobState.SUCCEEDED, JobState.FAILED}
    ),
    JobState.RUNNING: frozenset({JobState.RECOVERING, JobState.CANCELLING, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.RECOVERING: frozenset(
        {JobState.STARTING, JobState.RUNNING, JobState.CANCELLING, JobState.SUCCEEDED, JobState.FAILED}
    ),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
"""From each state, the states it may become. (A queued job has nothing to wind down: it is CANCELLED at once.)"""


class Reason(StrEnum):
    """Why a job changed state."""

    SUBMITTED = "submitted"
    RETRIED = "retried"
    """Submitted by `retry` of a job that had failed or was cancelled; trains on from that job's last checkpoint."""
    ATTEMPT_SUBMITTED = "attempt_submitted"
    NEW_ATTEMPT = "new_attempt"
    FIRST_HEARTBEAT = "first_heartbeat"
    RESULT_COMPLETE = "result_complete"
    USER_CANCELLED = "user_cancelled"
    STUDY_CANCELLED = "study_cancelled"
    EARLY_STOPPED = "early_stopped"
    """Its study's early stopping ended it: others of the study do better."""
    DEADLINE = "deadline"
    """It had not ended within `scheduling.deadline_s`."""
    NEVER_FITS = "never_fits"
    """The job asks for more than the whole cluster has, or than its tenant may have."""
    SUBMIT_FAILED = "submit_failed"
    """Ray did not accept the attempt."""
    SPEC_REJECTED = "spec_rejected"
    """The trainer could not train this spec."""
    DATA_QUARANTINE_LIMIT = "data_quarantine_limit"
    """More examples were unreadable than the job tolerates."""
    DATA_UNAVAILABLE = "data_unavailable"
    """The storage of the data did not answer."""
    NON_FINITE_LOSS = "non_finite_loss"
    """Training diverged: loss or weights were no longer finite."""
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_LOST = "worker_lost"
    """A rank died."""
    DRIVER_LOST = "driver_lost"
    """The driver was killed."""
    HEAD_LOST = "head_lost"
    """Ray no longer knows the attempt: its head was restarted, or does not answer."""
    HEARTBEAT_LOST = "heartbeat_lost"
    """The attempt's driver lives, but rank 0 has been silent for too long; or rank 0 ended, as nobody answered it."""
    STOPPED_OUTSIDE = "stopped_outside"
    """Somebody else than Hush stopped the driver."""
    ATTEMPT_FAILED = "attempt_failed"
    """An error of another kind; the message holds the last lines of what it said."""
    RESULT_MISSING = "result_missing"
    """Ray says it succeeded, but the result manifest is missing or its checksums do not hold."""


def may_become(state: JobState, new: JobState) -> bool:
    """Whether a job in `state` may become `new`."""
    return new in TRANSITIONS[state]
