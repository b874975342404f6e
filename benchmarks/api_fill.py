"""Databases with many jobs: a few live through the store itself, the others are copies of their rows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, case, insert, select

from service.jobs.ids import new_id
from service.jobs.records import JobRecord, Submission, Transition
from service.jobs.states import JobState, Reason
from service.store.database import writing
from service.store.store import Store
from service.store.tables import UtcDateTime, attempts, job_events, jobs
from service.store.writes import hash_token
from trainer.run_schema import EpochSummary, Heartbeat, Progress
from trainer.spec import JobSpec

TENANT = "default"
OTHER_TENANTS = ("team-a", "team-b")
METHODS = ("ivon", "sgd", "adamw", "sam")
NUM_EPOCHS = 3
JOBS_PER_NAME = 100
"""So that a page of one name is as full in a small database as in a large one."""

_ENDS = {JobState.SUCCEEDED: 88, JobState.FAILED: 7, JobState.CANCELLED: 4, JobState.QUEUED: 1}
"""How many of 100 jobs end so."""
_REASONS = {
    JobState.SUCCEEDED: Reason.RESULT_COMPLETE,
    JobState.FAILED: Reason.WORKER_LOST,
    JobState.CANCELLED: Reason.USER_CANCELLED,
}

_COPIES = Table(
    "bench_copies",
    MetaData(),
    Column("id", String(26), primary_key=True),
    Column("template", String(26)),
    Column("tenant", String(64)),
    Column("name", String(200)),
    Column("at", UtcDateTime),
    prefixes=["TEMPORARY"],
)
"""Which job is to be a copy of which one."""


def fill(engine: Engine, num_jobs: int, manifest: str) -> None:
    """Store `num_jobs` jobs: of 100, 88 have succeeded, 7 failed, 4 were cancelled and one waits."""
    store, draw = Store(engine), random.Random(0)
    templates = {_live(store, method, end, manifest): share for method in METHODS for end, share in _ENDS.items()}
    copies = list(_copies(num_jobs - len(templates), templates, draw))
    with writing(engine).begin() as connection:
        _COPIES.create(connection)
        connection.execute(insert(_COPIES), copies)
        for table in (jobs, attempts, job_events):
            _copy_rows(connection, table)
        _COPIES.drop(connection)
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE")  # what its autovacuum would have done by the next minute


def _copies(num_copies: int, templates: dict[str, int], draw: random.Random) -> Iterator[dict[str, object]]:
    """A second apart, the last of them now."""
    began = datetime.now(UTC) - timedelta(seconds=num_copies)
    num_names = max(8, num_copies // JOBS_PER_NAME)
    chosen = draw.choices(list(templates), list(templates.values()), k=num_copies)
    for number, template in enumerate(chosen):
        at = began + timedelta(seconds=number)
        yield {
            "id": new_id(at, draw.getrandbits(80)),
            "template": template,
            "tenant": draw.choices((TENANT, *OTHER_TENANTS), (90, 5, 5))[0],
            "name": f"job-{number % num_names}",
            "at": at,
        }


def _copy_rows(connection: Connection, table: Table) -> None:
    """Rows of a table for all copies: those of their templates, with another id, tenant, name and time."""
    of_job = table.c.id if table is jobs else table.c.job_id
    new = {of_job: _COPIES.c.id} | ({jobs.c.tenant: _COPIES.c.tenant, jobs.c.name: _COPIES.c.name})
    columns: Sequence[Column[Any]] = [column for column in table.columns if column is not job_events.c.id]
    values = [new.get(column, _moved(column)) for column in columns]
    query = select(*values).join_from(_COPIES, table, _COPIES.c.template == of_job)
    query = query.order_by(_COPIES.c.id, *table.primary_key.columns)
    connection.execute(insert(table).from_select([column.name for column in columns], query))


def _moved(column: Column[Any]) -> Any:
    """The column's value; a time, where there is one, becomes that of the copy."""
    is_time = isinstance(column.type, UtcDateTime)
    return case((column.is_not(None), _COPIES.c.at)).label(column.name) if is_time else column


def _spec(method: str, manifest: str) -> JobSpec:
    asked = {"name": "bench", "data": {"manifest": manifest}, "method": {"kind": method, "lr": 0.1}}
    return JobSpec.model_validate(asked)


def _live(store: Store, method: str, end: JobState, manifest: str) -> str:
    """The id of a job that has lived until `end`."""
    job, _ = store.submit(Submission(TENANT, _spec(method, manifest)), datetime.now(UTC))
    store.set_token(job.id, 1, hash_token(job.id))
    if end is not JobState.QUEUED:
        _live_through(store, job, end)
    return job.id


def _live_through(store: Store, job: JobRecord, end: JobState) -> None:
    now = datetime.now(UTC)
    store.transition(Transition(job.id, 1, JobState.QUEUED, JobState.STARTING, Reason.ATTEMPT_SUBMITTED), now)
    store.mark_submitted(job.id, 1, now)
    for epoch in range(1, NUM_EPOCHS + 1):
        summary = EpochSummary(epoch=epoch, metrics={"train/loss": 0.5, "val/accuracy": 0.9, "val/nll": 0.3})
        progress = Progress(
            phase="training", epoch=epoch, num_epochs=NUM_EPOCHS, step=epoch * 100, num_steps=NUM_EPOCHS * 100, loss=0.5
        )
        store.heartbeat(job.id, 1, job.id, Heartbeat(progress=progress, finished_epochs=(summary,)), now)
    state = JobState.RUNNING
    if end is JobState.CANCELLED:
        store.request_cancel(job.id, now)
        state = JobState.CANCELLING
    store.transition(Transition(job.id, 1, state, end, _REASONS[end]), now)
