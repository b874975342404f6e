"""Jobs that live in the database alone: no cluster and no driver, but every write is the store's own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from service.jobs.records import JobRecord, Submission, Transition
from service.jobs.states import JobState, Reason
from service.store.store import Store
from service.store.writes import hash_token
from trainer.run_schema import EpochSummary, Heartbeat, Progress
from trainer.spec import JobSpec

TOKEN: Final = "an attempt's token"


def spec(name: str = "stored") -> JobSpec:
    return JobSpec.model_validate({"name": name, "data": {"manifest": "/m/manifest.json"}})


def start_job(store: Store, name: str = "stored", tenant: str = "default") -> JobRecord:
    """A job that waits for its first heartbeat, whose token is TOKEN."""
    job, _ = store.submit(Submission(tenant, spec(name)), datetime.now(UTC))
    store.set_token(job.id, 1, hash_token(TOKEN))
    started = move(store, job, JobState.STARTING, Reason.ATTEMPT_SUBMITTED)
    store.mark_submitted(job.id, 1, datetime.now(UTC))
    return started


def move(store: Store, job: JobRecord, new: JobState, reason: Reason) -> JobRecord:
    current = store.get(job.id)
    assert current is not None
    return store.transition(Transition(job.id, 1, current.state, new, reason), datetime.now(UTC))


def beat(store: Store, job: JobRecord, epoch: int, num_epochs: int) -> None:
    """A heartbeat that tells of one finished epoch."""
    summary = EpochSummary(epoch=epoch, metrics={"val/accuracy": 0.5})
    progress = Progress(
        phase="training", epoch=epoch, num_epochs=num_epochs, step=epoch * 10, num_steps=num_epochs * 10, loss=1 / epoch
    )
    store.heartbeat(job.id, 1, TOKEN, Heartbeat(progress=progress, finished_epochs=(summary,)), datetime.now(UTC))
