"""Databases with many jobs in them: a few live through the store itself, the others are copies of their rows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, Table, insert, select

from service.jobs.ids import new_id
from service.jobs.records import JobRecord, Submission, Transition
from service.jobs.states import JobState, Reason
from service.store.database import writing
from service.store.store import Store
from service.store.tables import attempts, job_events, jobs
from service.store.writes import hash_token
from trainer.run_schema import EpochSummary, Heartbeat, Progress
from trainer.spec import JobSpec

TENANT = "default"
METHODS = ("ivon", "sgd", "adamw", "sam")
JOBS_PER_NAME = 100
"""So that a page of one name is as full in a small database as in a large one."""
NUM_EPOCHS = 3
BATCH = 1000
OTHER_TENANTS = ("team-a", "team-b")
Row = dict[str, object]


@dataclass(frozen=True)
class Template:
    """A job's rows, as the store wrote them."""

    job: Row
    attempts: Sequence[Row]
    events: Sequence[Row]


def fill(engine: Engine, num_jobs: int, manifest: str) -> None:
    """Store `num_jobs` jobs: of 100, 88 have succeeded, 7 failed, 4 were cancelled and one waits."""
    store, draw = Store(engine), random.Random(0)
    templates = [_template(engine, store, method, end, manifest) for method in METHODS for end in _ENDS]
    weights = [_ENDS[end] for _ in METHODS for end in _ENDS]
    began = datetime.now(UTC) - timedelta(seconds=num_jobs)
    num_left, num_names = num_jobs - len(templates), max(8, num_jobs // JOBS_PER_NAME)
    for start in range(0, num_left, BATCH):
        numbers = range(start, min(start + BATCH, num_left))
        chosen = draw.choices(templates, weights, k=len(numbers))
        copies = [
            _copy(template, f"job-{number % num_names}", began + timedelta(seconds=number), draw)
            for number, template in zip(numbers, chosen, strict=True)
        ]
        _insert(engine, copies)
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:  # what its autovacuum would have done by the next minute
            connection.exec_driver_sql("ANALYZE")


def _spec(method: str, manifest: str) -> JobSpec:
    asked = {"name": "bench", "data": {"manifest": manifest}, "method": {"kind": method, "lr": 0.1}}
    return JobSpec.model_validate(asked)


def _template(engine: Engine, store: Store, method: str, end: JobState, manifest: str) -> Template:
    job, _ = store.submit(Submission(TENANT, _spec(method, manifest)), datetime.now(UTC))
    store.set_token(job.id, 1, hash_token(job.id))
    if end is not JobState.QUEUED:
        _live_through(store, job, end)
    return Template(_rows(engine, jobs, job.id)[0], _rows(engine, attempts, job.id), _rows(engine, job_events, job.id))


def _live_through(store: Store, job: JobRecord, end: JobState) -> None:
    now = datetime.now(UTC)
    store.transition(Transition(job.id, 1, JobState.QUEUED, JobState.STARTING, Reason.ATTEMPT_SUBMITTED), now)
    store.mark_submitted(job.id, 1, now)
    for epoch in range(1, NUM_EPOCHS + 1):
        summary = EpochSummary(epoch=epoch, metrics={"train/loss": 0.5, "val/accuracy": 0.9, "val/nll": 0.3})
        progress = Progress(
            phase="training", epoch=epoch, num_epochs=NUM_EPOCHS, step=epoch * 100, num_steps=NUM_EPOCHS * 100, loss=0.5
        )
        beat = Heartbeat(progress=progress, finished_epochs=(summary,))
        store.heartbeat(job.id, 1, job.id, beat, now)
    change = Transition(job.id, 1, JobState.RUNNING, end, _REASONS[end])
    if end is JobState.CANCELLED:
        store.request_cancel(job.id, now)
        change = Transition(job.id, 1, JobState.CANCELLING, end, _REASONS[end])
    store.transition(change, now)


_ENDS = {JobState.SUCCEEDED: 88, JobState.FAILED: 7, JobState.CANCELLED: 4, JobState.QUEUED: 1}
_REASONS = {
    JobState.SUCCEEDED: Reason.RESULT_COMPLETE,
    JobState.FAILED: Reason.WORKER_LOST,
    JobState.CANCELLED: Reason.USER_CANCELLED,
}


def _rows(engine: Engine, table: Table, job_id: str) -> list[Row]:
    """A job's rows, without what the database counts up."""
    column = table.c.id if table is jobs else table.c.job_id
    with engine.begin() as connection:
        found = [dict(row) for row in connection.execute(select(table).where(column == job_id)).mappings()]
    return [{k: v for k, v in row.items() if table is not job_events or k != "id"} for row in found]


def _copy(template: Template, name: str, at: datetime, draw: random.Random) -> Template:
    """The same life at another time, under another id and name."""
    job_id = new_id(at, draw.getrandbits(80))
    tenant = draw.choices((TENANT, *OTHER_TENANTS), (90, 5, 5))[0]
    job = {**_moved(template.job, at), "id": job_id, "tenant": tenant, "name": name}
    return Template(
        job,
        [{**_moved(row, at), "job_id": job_id} for row in template.attempts],
        [{**_moved(row, at), "job_id": job_id} for row in template.events],
    )


def _moved(row: Row, at: datetime) -> Row:
    return {key: at if isinstance(value, datetime) else value for key, value in row.items()}


def _insert(engine: Engine, batch: Sequence[Template]) -> None:
    with writing(engine).begin() as connection:
        for table, rows in _by_table(batch):
            connection.execute(insert(table), rows)


def _by_table(batch: Sequence[Template]) -> Iterator[tuple[Table, list[Row]]]:
    yield jobs, [one.job for one in batch]
    yield attempts, [row for one in batch for row in one.attempts]
    yield job_events, [row for one in batch for row in one.events]
