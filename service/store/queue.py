"""What the reconciler reads at each look. Twice a second, so none of it may cost more when thousands of jobs wait."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, func, select

from service.jobs.records import LiveJob, OverdueJob, TenantLimits, WaitingJob, attempt_record, job_record
from service.jobs.states import ACTIVE_STATES, TERMINAL_STATES, WAITING_STATES, JobState
from service.store.tables import attempts, jobs, tenants
from trainer.spec import ResourcesSpec

_ORDER = (jobs.c.priority.desc(), jobs.c.id)
"""Who is next: by priority, then by age."""

_WAITING_COLUMNS = (
    jobs.c.id,
    jobs.c.tenant,
    jobs.c.state,
    jobs.c.attempt,
    jobs.c.priority,
    jobs.c.not_before,
    jobs.c.spec["resources"].label("resources"),
)


def read_active(connection: Connection) -> list[LiveJob]:
    """Jobs that may have a driver, with their current attempts, oldest first."""
    active = jobs.c.state.in_(sorted(ACTIVE_STATES))
    current = and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt)
    attempt_query = select(attempts).join(jobs, current).where(active)
    by_job = {row["job_id"]: attempt_record(row) for row in connection.execute(attempt_query).mappings()}
    # Sorted here: told to sort, SQLite may prefer to read all jobs in order to finding these by their states.
    rows = sorted(connection.execute(select(jobs).where(active)).mappings(), key=lambda row: str(row["id"]))
    found = [job_record(row) for row in rows]
    # Under PostgreSQL's READ COMMITTED a job may have moved on between the two queries: it is seen next time.
    return [LiveJob(job, by_job[job.id]) for job in found if job.id in by_job and by_job[job.id].number == job.attempt]


def read_has_waiting(connection: Connection) -> bool:
    """Whether any job waits for its turn."""
    query = select(jobs.c.id).where(jobs.c.state.in_(sorted(WAITING_STATES))).limit(1)
    return connection.execute(query).first() is not None


def read_waiting(connection: Connection, num_per_tenant: int, now: datetime) -> list[WaitingJob]:
    """Jobs that wait for their turn, in order: of each tenant the first ones whose backoff is over."""
    place = func.row_number().over(partition_by=jobs.c.tenant, order_by=_ORDER).label("place")
    may_start = jobs.c.not_before.is_(None) | (jobs.c.not_before <= now)
    ranked = select(jobs.c.id, place).where(jobs.c.state.in_(sorted(WAITING_STATES)), may_start).subquery()
    first = select(ranked.c.id).where(ranked.c.place <= num_per_tenant)
    return _waiting(connection, jobs.c.id.in_(first))


def read_newcomers(connection: Connection, since_id: str, limit: int) -> list[WaitingJob]:
    """Those of the newest jobs, after `since_id`, that are queued."""
    newest = select(jobs.c.id).where(jobs.c.id >= since_id).order_by(jobs.c.id.desc()).limit(limit)
    found = _waiting(connection, jobs.c.id.in_(newest))
    # Sorted out here: asked for it, SQLite may prefer to read all queued jobs to reading the newest ones.
    return [job for job in found if job.state is JobState.QUEUED]


def read_recovering(connection: Connection, limit: int) -> list[WaitingJob]:
    """Jobs that recover, at most `limit` of them."""
    return _waiting(connection, jobs.c.state == JobState.RECOVERING, limit)


def read_overdue(connection: Connection, now: datetime, limit: int) -> list[OverdueJob]:
    """Jobs past their deadlines that nobody has asked to stop yet."""
    unasked = frozenset(JobState) - TERMINAL_STATES - {JobState.CANCELLING}
    query = select(jobs.c.id, jobs.c.state, jobs.c.attempt, jobs.c.deadline_at)
    query = query.where(jobs.c.state.in_(sorted(unasked)), jobs.c.deadline_at <= now).limit(limit)
    rows = connection.execute(query).mappings()
    return [OverdueJob(row["id"], JobState(row["state"]), row["attempt"], row["deadline_at"]) for row in rows]


def read_limits(connection: Connection) -> dict[str, TenantLimits]:
    """What tenants may take, of those that have limits of their own."""
    own = tenants.c.max_running_jobs.is_not(None) | tenants.c.max_workers.is_not(None)
    rows = connection.execute(select(tenants).where(own)).mappings()
    return {row["name"]: TenantLimits(row["max_running_jobs"], row["max_workers"]) for row in rows}


def _waiting(connection: Connection, which: ColumnElement[bool], limit: int | None = None) -> list[WaitingJob]:
    query = select(*_WAITING_COLUMNS).where(which).order_by(*_ORDER).limit(limit)
    return [_waiting_job(row) for row in connection.execute(query).mappings()]


def _waiting_job(row: RowMapping) -> WaitingJob:
    return WaitingJob(
        id=row["id"],
        tenant=row["tenant"],
        state=JobState(row["state"]),
        attempt=row["attempt"],
        priority=row["priority"],
        not_before=row["not_before"],
        resources=ResourcesSpec.model_validate(row["resources"]),
    )
