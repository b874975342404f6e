"""The store: jobs, attempts and events in SQL. The database is the truth; Ray is the muscle.

Every change of state goes through `_move`: one compare-and-set on (state, attempt) that matches exactly one row, with
one event in the same transaction. Every transaction that adds an event first updates the job's row, whose lock makes
the ids of one job's events rise in the order they become visible, on PostgreSQL too.
"""

from __future__ import annotations

import hmac
import math
import secrets
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

from sqlalchemy import Connection, Engine, and_, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.jobs.ids import new_job_id
from service.jobs.records import (
    AttemptRecord,
    EventRecord,
    IdempotencyConflictError,
    JobFilter,
    JobRecord,
    LiveJob,
    StaleTransitionError,
    Transition,
    attempt_record,
    event_record,
    job_record,
)
from service.jobs.states import LIVE_STATES, TERMINAL_STATES, JobState, Reason, may_become
from service.store.database import writing
from service.store.tables import attempts, idempotency_keys, job_events, jobs
from trainer.run_schema import EpochSummary, Heartbeat, HeartbeatReply, Progress
from trainer.spec import JobSpec


class UnknownAttemptError(Exception):
    """No such job, or no such attempt of it."""


class WrongTokenError(Exception):
    """The bearer token is not this attempt's."""


class FencedOffError(Exception):
    """The attempt is not the current one any more, or its job has ended: it must stop."""


def hash_token(token: str) -> str:
    """What is kept of a bearer token; plain SHA-256 suffices, since tokens hold 256 random bits."""
    return sha256(token.encode()).hexdigest()


def spec_digest(spec: JobSpec) -> str:
    """SHA-256 of a spec, the same for the same job however its JSON was written."""
    return sha256(spec.model_dump_json().encode()).hexdigest()


class Store:
    """Jobs, attempts, events and idempotency keys."""

    def __init__(self, engine: Engine) -> None:
        """`engine` comes from `database.open_engine`, its schema from `database.migrate`."""
        self._engine = engine
        self._writing = writing(engine)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def ping(self) -> None:
        """Raise unless the database answers."""
        with self._engine.connect() as connection:
            connection.execute(select(1))

    # ------------------------------------------------------------------------------------------------------ jobs

    def find_submitted(self, key: str, spec: JobSpec) -> JobRecord | None:
        """The job that was submitted under an idempotency key; IdempotencyConflictError if it was another job."""
        with self._engine.begin() as connection:
            return _submitted_under(connection, key, spec)

    def submit(self, spec: JobSpec, now: datetime, idempotency_key: str | None = None) -> tuple[JobRecord, bool]:
        """Store a new job with its first attempt, once for each idempotency key; says whether it is new."""
        try:
            with self._writing.begin() as connection:
                if idempotency_key and (known := _submitted_under(connection, idempotency_key, spec)):
                    return known, False
                job_id = new_job_id(now, secrets.randbits(80))
                _insert_job(connection, job_id, spec, now)
                if idempotency_key:
                    key = {"key": idempotency_key, "body_hash": spec_digest(spec), "job_id": job_id, "created_at": now}
                    connection.execute(insert(idempotency_keys).values(key))
                return _get_job(connection, job_id), True
        except IntegrityError:
            # PostgreSQL only: another request stored the same key between our look and our insert.
            if idempotency_key and (known := self.find_submitted(idempotency_key, spec)):
                return known, False
            raise

    def get(self, job_id: str) -> JobRecord | None:
        """A job, or None."""
        with self._engine.begin() as connection:
            return _find_job(connection, job_id)

    def page(self, wanted: JobFilter, limit: int, before_id: str | None = None) -> list[JobRecord]:
        """The newest jobs that match, at most `limit`, older than `before_id`."""
        query = select(jobs).order_by(jobs.c.id.desc()).limit(limit)
        for column, value in (("state", wanted.state), ("name", wanted.name), ("method", wanted.method)):
            if value is not None:
                query = query.where(jobs.c[column] == value)
        if before_id is not None:
            query = query.where(jobs.c.id < before_id)
        with self._engine.begin() as connection:
            return [job_record(row) for row in connection.execute(query).mappings()]

    def live(self) -> list[LiveJob]:
        """All jobs that have not ended, with their current attempts, oldest first."""
        job_query = select(jobs).where(jobs.c.state.in_(sorted(LIVE_STATES))).order_by(jobs.c.id)
        current = and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt)
        attempt_query = select(attempts).join(jobs, current).where(jobs.c.state.in_(sorted(LIVE_STATES)))
        with self._engine.begin() as connection:
            by_job = {row["job_id"]: attempt_record(row) for row in connection.execute(attempt_query).mappings()}
            found = [job_record(row) for row in connection.execute(job_query).mappings()]
        # Under PostgreSQL's READ COMMITTED a job may be stored between the two queries: it is seen next time.
        return [LiveJob(job, by_job[job.id]) for job in found if job.id in by_job]

    def transition(self, change: Transition, now: datetime) -> JobRecord:
        """Make one change of state, with its event; StaleTransitionError if the job is not as the asker saw it."""
        with self._writing.begin() as connection:
            _move(connection, change, now)
            return _get_job(connection, change.job_id)

    def request_cancel(self, job_id: str, now: datetime) -> JobRecord | None:
        """Cancel a job that waits, ask a job that runs to stop, leave one that has ended as it is; None if unknown."""
        while True:
            job = self.get(job_id)
            if job is None or job.state in TERMINAL_STATES or job.state is JobState.CANCELLING:
                return job
            new = JobState.CANCELLED if job.state is JobState.QUEUED else JobState.CANCELLING
            try:
                return self.transition(Transition(job.id, job.attempt, job.state, new, Reason.USER_CANCELLED), now)
            except StaleTransitionError:
                continue  # it moved while we looked: look again

    # -------------------------------------------------------------------------------------------------- attempts

    def set_token(self, job_id: str, number: int, token_hash: str) -> None:
        """Keep the hash of an attempt's token, before anybody is told the token."""
        with self._writing.begin() as connection:
            _update_attempt(connection, job_id, number, token_hash=token_hash)

    def mark_submitted(self, job_id: str, number: int, now: datetime) -> None:
        """The cluster has accepted an attempt."""
        with self._writing.begin() as connection:
            _update_attempt(connection, job_id, number, submitted_at=now)

    def heartbeat(self, job_id: str, number: int, token: str, beat: Heartbeat, now: datetime) -> HeartbeatReply:
        """Take in what rank 0 says; raises UnknownAttemptError, WrongTokenError or FencedOffError."""
        with self._writing.begin() as connection:
            attempt = _find_attempt(connection, job_id, number)
            if attempt is None:
                raise UnknownAttemptError
            if attempt.token_hash is None or not hmac.compare_digest(hash_token(token), attempt.token_hash):
                raise WrongTokenError
            job = _get_job(connection, job_id)
            if job.attempt != number or job.state in TERMINAL_STATES:
                raise FencedOffError
            if job.state in {JobState.STARTING, JobState.RECOVERING}:
                _move(connection, Transition(job.id, number, job.state, JobState.RUNNING, Reason.FIRST_HEARTBEAT), now)
                job = _get_job(connection, job_id)
            _update_attempt(connection, job_id, number, heartbeat_at=now)
            _store_progress(connection, job, beat, now)
            _store_epochs(connection, job, beat.finished_epochs, now)
            return HeartbeatReply(action="stop" if job.state is JobState.CANCELLING else "continue")

    # ---------------------------------------------------------------------------------------------------- events

    def follow(self, job_id: str, after: int, limit: int) -> tuple[JobRecord, list[EventRecord]] | None:
        """A job and its events with ids above `after`, both as of one moment; None if there is no such job."""
        query = select(job_events).where(job_events.c.job_id == job_id, job_events.c.id > after)
        query = query.order_by(job_events.c.id).limit(limit)
        with self._engine.begin() as connection:
            # Events first: under READ COMMITTED the job may then be newer than its events, never older.
            events = [event_record(row) for row in connection.execute(query).mappings()]
            job = _find_job(connection, job_id)
            return None if job is None else (job, events)


class IllegalTransitionError(Exception):
    """service.jobs.states.TRANSITIONS does not allow this change."""


def _move(connection: Connection, change: Transition, now: datetime) -> None:
    """The only place where a state changes."""
    if not may_become(change.state, change.new):
        raise IllegalTransitionError(f"{change.state} may not become {change.new}")
    values: dict[str, object] = {
        "state": change.new,
        "state_since": now,
        "reason": change.reason,
        "message": change.message,
        "updated_at": now,
    }
    if change.new in TERMINAL_STATES:
        values["ended_at"] = now
    if change.new is JobState.RUNNING:
        values["started_at"] = func.coalesce(jobs.c.started_at, now)
    if change.next_attempt:
        values |= {"attempt": change.attempt + 1, "num_failures": jobs.c.num_failures + 1}
    seen = (jobs.c.id == change.job_id, jobs.c.state == change.state, jobs.c.attempt == change.attempt)
    if connection.execute(update(jobs).where(*seen).values(values)).rowcount != 1:
        raise StaleTransitionError(f"job {change.job_id} is not {change.state} in attempt {change.attempt} any more")
    if change.next_attempt:
        _insert_attempt(connection, change.job_id, change.attempt + 1, now)
    event: dict[str, object] = {
        "kind": "state",
        "state": change.new,
        "reason": change.reason,
        "message": change.message,
    }
    _insert_event(connection, change.job_id, change.attempt, now, event)


def _insert_job(connection: Connection, job_id: str, spec: JobSpec, now: datetime) -> None:
    values = {
        "id": job_id,
        "name": spec.name,
        "method": spec.method.kind,
        "spec": spec.model_dump(mode="json"),
        "state": JobState.QUEUED,
        "state_since": now,
        "reason": Reason.SUBMITTED,
        "attempt": 1,
        "num_failures": 0,
        "created_at": now,
        "updated_at": now,
    }
    connection.execute(insert(jobs).values(values))
    _insert_attempt(connection, job_id, 1, now)
    _insert_event(connection, job_id, 1, now, {"kind": "state", "state": JobState.QUEUED, "reason": Reason.SUBMITTED})


def _insert_attempt(connection: Connection, job_id: str, number: int, now: datetime) -> None:
    connection.execute(insert(attempts).values(job_id=job_id, number=number, created_at=now))


def _insert_event(connection: Connection, job_id: str, attempt: int, now: datetime, event: dict[str, object]) -> None:
    connection.execute(insert(job_events).values({"job_id": job_id, "attempt": attempt, "time": now, **event}))


def _update_attempt(connection: Connection, job_id: str, number: int, **values: object) -> None:
    this = (attempts.c.job_id == job_id, attempts.c.number == number)
    found = connection.execute(update(attempts).where(*this).values(values)).rowcount
    assert found == 1, f"attempt {number} of job {job_id} matched {found} rows"


def _store_progress(connection: Connection, job: JobRecord, beat: Heartbeat, now: datetime) -> None:
    values: dict[str, object] = {"progress": _finite(beat.progress).model_dump(mode="json"), "updated_at": now}
    if beat.mlflow_run_id is not None:
        values |= {"mlflow_run_id": beat.mlflow_run_id, "mlflow_experiment_id": beat.mlflow_experiment_id}
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(values))


def _store_epochs(connection: Connection, job: JobRecord, epochs: Sequence[EpochSummary], now: datetime) -> None:
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


def _finite(progress: Progress) -> Progress:
    """Without NaN and infinity, which JSON does not have."""
    values = {name: getattr(progress, name) for name in ("images_per_s", "eta_s", "loss")}
    return progress.model_copy(update={n: None for n, v in values.items() if v is not None and not math.isfinite(v)})


def _submitted_under(connection: Connection, key: str, spec: JobSpec) -> JobRecord | None:
    row = connection.execute(select(idempotency_keys).where(idempotency_keys.c.key == key)).mappings().first()
    if row is None:
        return None
    if row["body_hash"] != spec_digest(spec):
        raise IdempotencyConflictError(row["job_id"])
    return _get_job(connection, row["job_id"])


def _find_job(connection: Connection, job_id: str) -> JobRecord | None:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().first()
    return None if row is None else job_record(row)


def _get_job(connection: Connection, job_id: str) -> JobRecord:
    job = _find_job(connection, job_id)
    assert job is not None, f"job {job_id} is not there"
    return job


def _find_attempt(connection: Connection, job_id: str, number: int) -> AttemptRecord | None:
    query = select(attempts).where(attempts.c.job_id == job_id, attempts.c.number == number)
    row = connection.execute(query).mappings().first()
    return None if row is None else attempt_record(row)
