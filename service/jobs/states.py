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
    """A stop was asked for; the attempt is being wound down."""
    SUCCEEDED = "SUCCEEDED"
    """The attempt's result manifest is there and its checksums hold."""
    FAILED = "FAILED"
    """No attempt is left to try; the reason says why."""
    CANCELLED = "CANCELLED"
    """Stopped on request; what it had by then is kept."""


TERMINAL_STATES: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
"""States that never change again."""

LIVE_STATES: Final = frozenset(JobState) - TERMINAL_STATES

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
"""From each state, the states it may become."""


class Reason(StrEnum):
    """Why a job changed state."""

    SUBMITTED = "submitted"
    ATTEMPT_SUBMITTED = "attempt_submitted"
    FIRST_HEARTBEAT = "first_heartbeat"
    RESULT_COMPLETE = "result_complete"
    USER_CANCELLED = "user_cancelled"
    STOPPED = "stopped"
    ATTEMPT_FAILED = "attempt_failed"
    """The driver ended with an error; the message holds the last lines of what it said."""
    ATTEMPT_LOST = "attempt_lost"
    """Ray no longer knows the attempt: its head or driver died."""
    RESULT_MISSING = "result_missing"
    """Ray says it succeeded, but the result manifest is missing or its checksums do not hold."""
    NEVER_FITS = "never_fits"
    """The job asks for more than the whole cluster has."""
    SUBMIT_FAILED = "submit_failed"
    """Ray did not accept the attempt."""
    NEW_ATTEMPT = "new_attempt"


def may_become(state: JobState, new: JobState) -> bool:
    """Whether a job in `state` may become `new`."""
    return new in TRANSITIONS[state]
