"""What every transaction of the store is made of: moves of a job, its rows, and the keys under which it was handed in.

`move` is the only place where a state changes: one compare-and-set on (state, attempt) that matches exactly one row,
with one event in the same transaction. Every transaction that adds an event first updates the job's row, whose lock
makes the ids of one job's events rise in the order they become visible, on PostgreSQL too.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256

from sqlalchemy import Connection, and_, func, insert, select, update

from service.control.failpoints import Failpoint, failpoint
from service.jobs.ids import new_id
from service.jobs.records import (
    AttemptRecord,
    Fence,
    IdempotencyConflictError,
    JobRecord,
    LeaseLostError,
    PlaceTakenError,
    StaleTransitionError,
    Submission,
    Transition,
    attempt_record,
    job_record,
)
from service.jobs.states import TERMINAL_STATES, JobState, Reason, may_become
from service.store.tables import (
    attempts,
    idempotency_keys,
    job_events,
    jobs,
    leases,
    studies,
    webhook_deliveries,
    webhooks,
)
from trainer.run_schema import EpochSummary, Heartbeat, Progress


class IllegalTransitionError(Exception):
    """service.jobs.states.TRANSITIONS does not allow this change."""


def hash_token(token: str) -> str:
    """What is kept of a bearer token; plain SHA-256 suffices, since tokens hold 256 random bits."""
    return sha256(token.encode()).hexdigest()


def hold(connection: Connection, fence: Fence | None) -> None:
    """Raise LeaseLostError if another holds the lease; else nobody can take it before this transaction ends."""
    if fence is None:
        return
    this = (leases.c.name == fence.name, leases.c.token == fence.token)
    if connection.execute(select(leases.c.name).where(*this).with_for_update(read=True)).first() is None:
        raise LeaseLostError(fence.name)


def move(connection: Connection, change: Transition, now: datetime) -> None:
    """Change a job's state, with its event."""
    if not may_become(change.state, change.new):
        raise IllegalTransitionError(f"{change.state} may not become {change.new}")
    is_lost = change.new is JobState.RECOVERING
    values: dict[str, object] = {
        "state": change.new,
        "state_since": now,
        "reason": change.reason,
        "message": change.message,
        "not_before": change.not_before,
        "updated_at": now,
    }
    if change.new in TERMINAL_STATES:
        values["ended_at"] = now
    if change.new is JobState.RUNNING:
        values["started_at"] = func.coalesce(jobs.c.started_at, now)
    if change.cancel_mode is not None:
        values["cancel_mode"] = change.cancel_mode
    if is_lost:
        values |= {"attempt": change.attempt + 1, "num_failures": jobs.c.num_failures + 1}
    if change.epochs:
        store_epochs(connection, lock_job(connection, change.job_id), change.epochs, now)
    seen = (jobs.c.id == change.job_id, jobs.c.state == change.state, jobs.c.attempt == change.attempt)
    if connection.execute(update(jobs).where(*seen).values(values)).rowcount != 1:
        raise StaleTransitionError(f"job {change.job_id} is not {change.state} in attempt {change.attempt} any more")
    if is_lost or change.new in TERMINAL_STATES:
        end = {"ended_at": now, "reason": change.reason, "message": change.message}
        update_attempt(connection, change.job_id, change.attempt, end)
    if is_lost:
        _insert_attempt(connection, change.job_id, change.attempt + 1, now)
    failpoint(Failpoint.MOVE_BEFORE_EVENT)
    insert_state_event(connection, change, now)
    failpoint(Failpoint.MOVE_AFTER_EVENT)


def insert_job(connection: Connection, submission: Submission, now: datetime, job_id: str | None = None) -> str:
    """A new job in QUEUED, with its first attempt and first event; its id, a new one unless it is given."""
    spec = submission.spec
    created_at = _created_at(connection, submission, now)
    job_id = job_id or new_id(created_at, secrets.randbits(80))
    reason = Reason.SUBMITTED if submission.retry_of is None else Reason.RETRIED
    deadline_s = spec.scheduling.deadline_s
    values = {
        "id": job_id,
        "tenant": submission.tenant,
        "name": spec.name,
        "method": spec.method.kind,
        "priority": spec.scheduling.priority,
        "spec": spec.model_dump(mode="json"),
        "study_id": submission.study_id,
        "study_index": submission.study_index,
        "retry_of": submission.retry_of,
        "state": JobState.QUEUED,
        "state_since": now,
        "reason": reason,
        "attempt": 1,
        "num_failures": 0,
        "deadline_at": None if deadline_s is None else now + timedelta(seconds=deadline_s),
        "created_at": created_at,
        "updated_at": now,
    }
    connection.execute(insert(jobs).values(values))
    _insert_attempt(connection, job_id, 1, now)
    insert_state_event(connection, Transition(job_id, 1, JobState.QUEUED, JobState.QUEUED, reason), now)
    return job_id


def _created_at(connection: Connection, submission: Submission, now: datetime) -> datetime:
    """A retry is the newer one of the two, by its id too, also where another replica's clock is ahead of ours."""
    if submission.retry_of is None:
        return now
    query = select(jobs.c.created_at).where(jobs.c.id == submission.retry_of)
    earlier: datetime = connection.execute(query).scalar_one()
    return max(now, earlier + timedelta(milliseconds=1))


def take_place(connection: Connection, submission: Submission) -> None:
    """Before a job of a study is retried: PlaceTakenError if another has done so and holds its place.

    Nobody else retries one of that study before this transaction ends.
    """
    if submission.study_id is None or submission.retry_of is None:
        return
    connection.execute(select(studies.c.id).where(studies.c.id == submission.study_id).with_for_update())
    place = (jobs.c.study_id == submission.study_id, jobs.c.study_index == submission.study_index)
    holder = connection.execute(select(func.max(jobs.c.id)).where(*place)).scalar_one()
    if holder != submission.retry_of:
        raise PlaceTakenError(holder)


def insert_state_event(connection: Connection, change: Transition, now: datetime) -> None:
    """The event of a change, and a delivery to each webhook that wants to be told of it."""
    event: dict[str, object] = {
        "kind": "state",
        "state": change.new,
        "reason": change.reason,
        "message": change.message,
    }
    event_id = _insert_event(connection, change.job_id, change.attempt, now, event)
    of_tenant = select(jobs.c.tenant).where(jobs.c.id == change.job_id).scalar_subquery()
    query = select(webhooks.c.id, webhooks.c.states).where(webhooks.c.tenant == of_tenant)
    # Locked on PostgreSQL: one that is deleted while we write would else take this transaction down with it.
    for webhook_id, states in connection.execute(query.with_for_update(read=True, key_share=True)).all():
        if change.new in states:
            row = {"webhook_id": webhook_id, "event_id": event_id, "next_try_at": now}
            connection.execute(insert(webhook_deliveries).values(row))


def update_attempt(connection: Connection, job_id: str, number: int, values: dict[str, object]) -> None:
    """Change columns of one attempt that is there."""
    this = (attempts.c.job_id == job_id, attempts.c.number == number)
    found = connection.execute(update(attempts).where(*this).values(values)).rowcount
    assert found == 1, f"attempt {number} of job {job_id} matched {found} rows"


def store_progress(connection: Connection, job: JobRecord, beat: Heartbeat, now: datetime) -> None:
    """Keep where a run stands."""
    values: dict[str, object] = {"progress": _finite(beat.progress).model_dump(mode="json"), "updated_at": now}
    if beat.mlflow_run_id is not None:
        values |= {"mlflow_run_id": beat.mlflow_run_id, "mlflow_experiment_id": beat.mlflow_experiment_id}
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(values))


def store_epochs(connection: Connection, job: JobRecord, epochs: Sequence[EpochSummary], now: datetime) -> None:
    """One event for each epoch that was not told yet: a heartbeat may be sent twice, and an epoch trained twice."""
    if not epochs:
        return
    query = select(job_events.c.epoch).where(job_events.c.job_id == job.id, job_events.c.epoch.is_not(None))
    known = set(connection.execute(query).scalars())
    for summary in epochs:
        if summary.epoch in known:
            continue
        known.add(summary.epoch)
        metrics = {name: value for name, value in summary.metrics.items() if math.isfinite(value)}
        event: dict[str, object] = {"kind": "epoch", "state": job.state, "epoch": summary.epoch, "metrics": metrics}
        _insert_event(connection, job.id, job.attempt, now, event)


def find_job(connection: Connection, job_id: str) -> JobRecord | None:
    """A job, or None."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().first()
    return None if row is None else job_record(row)


def lock_job(connection: Connection, job_id: str) -> JobRecord:
    """A job that is there, and that nobody else changes before this transaction ends."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).mappings().one()
    return job_record(row)


def get_job(connection: Connection, job_id: str) -> JobRecord:
    """A job that is there."""
    job = find_job(connection, job_id)
    assert job is not None, f"job {job_id} is not there"
    return job


def find_attempt(connection: Connection, job_id: str, number: int) -> AttemptRecord | None:
    """An attempt, or None."""
    query = select(attempts).where(and_(attempts.c.job_id == job_id, attempts.c.number == number))
    row = connection.execute(query).mappings().first()
    return None if row is None else attempt_record(row)


def find_key(connection: Connection, tenant: str, key: str, body_hash: str) -> str | None:
    """Id of what was made under an idempotency key; IdempotencyConflictError if that was something else."""
    this = (idempotency_keys.c.tenant == tenant, idempotency_keys.c.key == key)
    row = connection.execute(select(idempotency_keys).where(*this)).mappings().first()
    if row is None:
        return None
    if row["body_hash"] != body_hash:
        raise IdempotencyConflictError(row["subject_id"])
    subject_id = row["subject_id"]
    assert isinstance(subject_id, str)
    return subject_id


def insert_key(
    connection: Connection, tenant: str, key: str, body_hash: str, *, subject_id: str, now: datetime
) -> None:
    """Remember what was made under an idempotency key; IntegrityError if another request was faster."""
    row = {"tenant": tenant, "key": key, "body_hash": body_hash, "subject_id": subject_id, "created_at": now}
    connection.execute(insert(idempotency_keys).values(row))


def _insert_attempt(connection: Connection, job_id: str, number: int, now: datetime) -> None:
    connection.execute(insert(attempts).values(job_id=job_id, number=number, created_at=now))


def _insert_event(connection: Connection, job_id: str, attempt: int, now: datetime, event: dict[str, object]) -> int:
    row = {"job_id": job_id, "attempt": attempt, "time": now, **event}
    event_id = connection.execute(insert(job_events).values(row).returning(job_events.c.id)).scalar_one()
    assert isinstance(event_id, int)
    return event_id


def _finite(progress: Progress) -> Progress:
    """Without NaN and infinity, which JSON does not have."""
    values = {name: getattr(progress, name) for name in ("images_per_s", "eta_s", "loss")}
    return progress.model_copy(update={n: None for n, v in values.items() if v is not None and not math.isfinite(v)})
