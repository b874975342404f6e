"""What the store holds, as values: jobs, attempts, events, and the changes that are asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from service.jobs.states import JobState, Reason
from trainer.run_schema import EpochSummary, Progress
from trainer.spec import JobSpec, ResourcesSpec

if TYPE_CHECKING:  # jobs/ is pure, and the client, which reads its states, is light
    from sqlalchemy import RowMapping

CancelMode = Literal["graceful", "now"]
"""`graceful`: after a last checkpoint; `now`: at once, without."""


@dataclass(frozen=True)
class JobRecord:
    """A job as it is stored."""

    id: str
    tenant: str
    spec: JobSpec
    state: JobState
    state_since: datetime
    reason: Reason
    message: str | None
    attempt: int
    """The current attempt: no other may publish."""
    num_failures: int
    """Attempts lost so far."""
    progress: Progress | None
    mlflow_run_id: str | None
    mlflow_experiment_id: str | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    not_before: datetime | None = None
    """While it recovers: the next attempt starts no earlier."""
    deadline_at: datetime | None = None
    cancel_mode: CancelMode | None = None
    """How it was asked to stop; None if it was not."""
    study_id: str | None = None
    study_index: int | None = None
    """Its place in the study's grid, from 0."""
    retry_of: str | None = None
    """The job that had ended whose checkpoints it goes on from."""


@dataclass(frozen=True)
class AttemptRecord:
    """One run of a job."""

    job_id: str
    number: int
    token_hash: str | None
    """SHA-256 of its bearer token; None until its attempt.json is written."""
    created_at: datetime
    submitted_at: datetime | None
    """When the cluster had accepted it."""
    heartbeat_at: datetime | None
    """Its last heartbeat."""
    ended_at: datetime | None = None
    reason: Reason | None = None
    """Why it ended; before that, why we are about to end it."""
    message: str | None = None


@dataclass(frozen=True)
class LiveJob:
    """A job that has not ended, with its current attempt."""

    job: JobRecord
    attempt: AttemptRecord


@dataclass(frozen=True)
class WaitingJob:
    """A job that waits for its turn: what the queue has to know of it, which is far less than all."""

    id: str
    tenant: str
    state: JobState
    attempt: int
    priority: int
    not_before: datetime | None
    resources: ResourcesSpec


@dataclass(frozen=True)
class OverdueJob:
    """A job that has not ended by its deadline."""

    id: str
    state: JobState
    attempt: int
    deadline_at: datetime


@dataclass(frozen=True)
class TenantLimits:
    """What the jobs of one tenant may take at a time; None: as much as there is."""

    max_running_jobs: int | None = None
    max_workers: int | None = None


@dataclass(frozen=True)
class EventRecord:
    """Something that happened to a job."""

    id: int
    job_id: str
    attempt: int
    time: datetime
    kind: Literal["state", "epoch"]
    state: JobState
    reason: Reason | None
    message: str | None
    epoch: EpochSummary | None


@dataclass(frozen=True)
class Transition:
    """A change of state, asked for by someone who saw the job in `state` with `attempt` current.

    To RECOVERING: that attempt is lost. A failure is counted, and the next attempt made current, which fences it off.
    """

    job_id: str
    attempt: int
    state: JobState
    new: JobState
    reason: Reason
    message: str | None = None
    not_before: datetime | None = None
    """To RECOVERING: when the next attempt may start at the earliest."""
    cancel_mode: CancelMode | None = None
    """Of a stop: how."""
    epochs: tuple[EpochSummary, ...] = ()
    """Epochs that are finished; the heartbeat that would have told the last ones may have been lost."""


@dataclass(frozen=True)
class Fence:
    """A lease as its holder knows it. A write that bears it is refused once another holds the lease."""

    name: str
    token: int


@dataclass(frozen=True)
class Submission:
    """A job as it is handed in."""

    tenant: str
    spec: JobSpec
    study_id: str | None = None
    study_index: int | None = None
    retry_of: str | None = None


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list; None takes all."""

    tenant: str | None = None
    study_id: str | None = None
    state: JobState | None = None
    name: str | None = None
    method: str | None = None


class StaleTransitionError(Exception):
    """The job was no longer as the asker saw it; nothing was changed."""


class LeaseLostError(Exception):
    """Another process holds the lease by now; nothing was changed."""


class PlaceTakenError(Exception):
    """Another job holds the place in the study: its id is the argument."""


class IdempotencyConflictError(Exception):
    """The idempotency key was used before, for something else: its id is the argument."""


def job_record(row: RowMapping) -> JobRecord:
    """A row of `jobs`; its name and method stand in the spec."""
    return JobRecord(
        id=row["id"],
        tenant=row["tenant"],
        study_id=row["study_id"],
        study_index=row["study_index"],
        retry_of=row["retry_of"],
        spec=JobSpec.model_validate(row["spec"]),
        state=JobState(row["state"]),
        state_since=row["state_since"],
        reason=Reason(row["reason"]),
        message=row["message"],
        attempt=row["attempt"],
        num_failures=row["num_failures"],
        not_before=row["not_before"],
        deadline_at=row["deadline_at"],
        cancel_mode=row["cancel_mode"],
        progress=None if row["progress"] is None else Progress.model_validate(row["progress"]),
        mlflow_run_id=row["mlflow_run_id"],
        mlflow_experiment_id=row["mlflow_experiment_id"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
    )


def attempt_record(row: RowMapping) -> AttemptRecord:
    """A row of `attempts`."""
    return AttemptRecord(
        job_id=row["job_id"],
        number=row["number"],
        token_hash=row["token_hash"],
        created_at=row["created_at"],
        submitted_at=row["submitted_at"],
        heartbeat_at=row["heartbeat_at"],
        ended_at=row["ended_at"],
        reason=None if row["reason"] is None else Reason(row["reason"]),
        message=row["message"],
    )


def event_record(row: RowMapping) -> EventRecord:
    """A row of `job_events`."""
    epoch = None if row["epoch"] is None else EpochSummary(epoch=row["epoch"], metrics=row["metrics"] or {})
    return EventRecord(
        id=row["id"],
        job_id=row["job_id"],
        attempt=row["attempt"],
        time=row["time"],
        kind=row["kind"],
        state=JobState(row["state"]),
        reason=None if row["reason"] is None else Reason(row["reason"]),
        message=row["message"],
        epoch=epoch,
    )
