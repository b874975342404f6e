"""What the store holds of studies, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from service.jobs.states import JobState, Reason
from service.studies.study_spec import StudySpec
from trainer.run_schema import Progress


@dataclass(frozen=True)
class StudyHead:
    """A study without its spec, which may have megabytes: many of them make a page."""

    id: str
    tenant: str
    name: str
    created_at: datetime
    cancelled_at: datetime | None
    """When all of it was asked to stop."""


@dataclass(frozen=True)
class StudyRecord(StudyHead):
    """A study as it is stored."""

    spec: StudySpec


@dataclass(frozen=True)
class StudyJob:
    """A job of a study, without its spec: a study may have a thousand."""

    id: str
    index: int
    name: str
    method: str
    state: JobState
    reason: Reason
    message: str | None
    progress: Progress | None


@dataclass(frozen=True)
class EpochValue:
    """What a job of a study was worth after an epoch."""

    job_id: str
    index: int
    """The job's place in the study."""
    epoch: int
    num_epochs: int
    """Epochs of the whole job."""
    metrics: dict[str, float]
