"""What a study is as a whole, from what its jobs are. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from service.jobs.states import LIVE_STATES, JobState, Reason

EARLY_STOPPED = (JobState.CANCELLED, Reason.EARLY_STOPPED)
"""What a job is that early stopping has ended."""

JobCounts = Mapping[tuple[JobState, Reason], int]
"""How many jobs of a study are in a state for a reason."""


class StudyState(StrEnum):
    """Where a study is, as its jobs say."""

    QUEUED = "QUEUED"
    """No job has started."""
    RUNNING = "RUNNING"
    """Some jobs have not ended."""
    CANCELLING = "CANCELLING"
    """It was cancelled, and is being wound down."""
    SUCCEEDED = "SUCCEEDED"
    """Each job has succeeded, or was stopped early because others did better."""
    FAILED = "FAILED"
    """All have ended, and some have failed."""
    CANCELLED = "CANCELLED"
    """All have ended, and some were cancelled."""


def study_state(counts: JobCounts, *, cancelled: bool) -> StudyState:
    """A study's state; `cancelled` says that all of it was asked to stop."""
    states = {state for state, _ in counts}
    if live := states & LIVE_STATES:
        if cancelled and live == {JobState.CANCELLING}:  # else a job was retried since
            return StudyState.CANCELLING
        return StudyState.QUEUED if states == {JobState.QUEUED} else StudyState.RUNNING
    if any(kind != EARLY_STOPPED and kind[0] is JobState.CANCELLED for kind in counts):
        return StudyState.CANCELLED
    return StudyState.FAILED if JobState.FAILED in states else StudyState.SUCCEEDED


def num_early_stopped(counts: JobCounts) -> int:
    """Jobs that early stopping has ended."""
    return counts.get(EARLY_STOPPED, 0)
