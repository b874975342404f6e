"""The store: jobs, attempts and events in SQL. The database is the truth; Ray is the muscle."""

from __future__ import annotations

import hmac
from datetime import datetime
from hashlib import sha256
from typing import Literal

from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import IntegrityError

from service.control.failpoints import Failpoint, failpoint
from service.jobs.records import (
    AttemptRecord,
    CancelMode,
    EventRecord,
    Fence,
    JobFilter,
    JobRecord,
    LiveJob,
    OverdueJob,
    PlaceTakenError,
    StaleTransitionError,
    Submission,
    TenantLimits,
    Transition,
    WaitingJob,
    attempt_record,
    event_record,
    job_record,
)
from service.jobs.states import TERMINAL_STATES, JobState, Reason
from service.store.database import writing
from service.store.queue import (
    read_active,
    read_has_waiting,
    read_limits,
    read_newcomers,
    read_overdue,
    read_recovering,
    read_waiting,
)
from service.store.tables import attempts, job_events, jobs
from service.store.writes import (
    find_attempt,
    find_job,
    find_key,
    get_job,
    hash_token,
    hold,
    insert_job,
    insert_key,
    lock_job,
    move,
    store_epochs,
    store_progress,
    take_place,
    update_attempt,
)
from trainer.run_schema import Heartbeat, HeartbeatReply


class UnknownAttemptError(Exception):
    """No such job, or no such attempt of it."""


class WrongTokenError(Exception):
    """The bearer token is not this attempt's."""


class FencedOffError(Exception):
    """The attempt is not the current one any more, or its job has ended: it must stop."""


def submission_digest(submission: Submission) -> str:
    """SHA-256 of what is asked for, the same for the same job however its JSON was written."""
    return sha256(f"{submission.retry_of or ''}\n{submission.spec.model_dump_json()}".encode()).hexdigest()


class Store:
    """Jobs, attempts and events."""

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

    def find_submitted(self, key: str, submission: Submission) -> JobRecord | None:
        """The job that was submitted under an idempotency key; IdempotencyConflictError if it was another job."""
        with self._engine.begin() as connection:
            job_id = find_key(connection, submission.tenant, key, submission_digest(submission))
            return None if job_id is None else get_job(connection, job_id)

    def submit(self, submission: Submission, now: datetime, key: str | None = None) -> tuple[JobRecord, bool]:
        """Store a new job with its first attempt, once for each idempotency key; says whether it is new.

        IdempotencyConflictError, or PlaceTakenError if another job was faster to retry the same one of a study.
        """
        tenant, digest = submission.tenant, submission_digest(submission)
        try:
            with self._writing.begin() as connection:
                if key is not None and (known := find_key(connection, tenant, key, digest)):
                    return get_job(connection, known), False
                take_place(connection, submission)
                job_id = insert_job(connection, submission, now)
                if key is not None:
                    insert_key(connection, tenant, key, digest, subject_id=job_id, now=now)
                submitted = get_job(connection, job_id)
                failpoint(Failpoint.SUBMIT_BEFORE_COMMIT)
            failpoint(Failpoint.SUBMIT_AFTER_COMMIT)
            return submitted, True
        except (IntegrityError, PlaceTakenError):
            # PostgreSQL only: another request stored the same key between our look and our insert.
            if key is not None and (known_job := self.find_submitted(key, submission)):
                return known_job, False
            raise

    def get(self, job_id: str) -> JobRecord | None:
        """A job, or None."""
        with self._engine.begin() as connection:
            return find_job(connection, job_id)

    def page(self, wanted: JobFilter, limit: int, before_id: str | None = None) -> list[JobRecord]:
        """The newest jobs that match, at most `limit`, older than `before_id`."""
        query = select(jobs).order_by(jobs.c.id.desc()).limit(limit)
        for name in ("tenant", "study_id", "state", "name", "method"):
            value = getattr(wanted, name)
            if value is not None:
                column = jobs.c[name].concat("") if name in _not_by_index(wanted) else jobs.c[name]
                query = query.where(column == value)
        if before_id is not None:
            query = query.where(jobs.c.id < before_id)
        with self._engine.begin() as connection:
            return [job_record(row) for row in connection.execute(query).mappings()]

    def lineage(self, job: JobRecord) -> list[str]:
        """Ids of a job, of the job it retries, of the one that retried, and so on back to the first."""
        ids, earlier = [job.id], job.retry_of
        with self._engine.begin() as connection:
            while earlier is not None:
                ids.append(earlier)
                earlier = connection.execute(select(jobs.c.retry_of).where(jobs.c.id == earlier)).scalar_one()
        return ids

    def transition(self, change: Transition, now: datetime, fence: Fence | None = None) -> JobRecord:
        """Make one change of state, with its event.

        StaleTransitionError if the job is not as the asker saw it; LeaseLostError if the asker has lost its lease.
        """
        with self._writing.begin() as connection:
            hold(connection, fence)
            move(connection, change, now)
            return get_job(connection, change.job_id)

    def confirm(self, job: JobRecord, fence: Fence | None) -> None:
        """Raise unless a job is still as the asker saw it, and the asker holds its lease."""
        this = (jobs.c.id == job.id, jobs.c.state == job.state, jobs.c.attempt == job.attempt)
        with self._engine.begin() as connection:
            hold(connection, fence)
            if connection.execute(select(jobs.c.id).where(*this)).first() is None:
                raise StaleTransitionError(f"job {job.id} is not {job.state} in attempt {job.attempt} any more")

    def request_cancel(
        self, job_id: str, now: datetime, mode: CancelMode = "graceful", reason: Reason = Reason.USER_CANCELLED
    ) -> JobRecord | None:
        """Cancel a job that waits, ask a job that runs to stop, leave one that has ended as it is; None if unknown.

        Asked again with `now`, a job that winds down is hurried.
        """
        while True:
            job = self.get(job_id)
            if job is None or job.state in TERMINAL_STATES:
                return job
            if job.state is JobState.CANCELLING:
                return self._hurry(job, now) if mode == "now" and job.cancel_mode != "now" else job
            new = JobState.CANCELLED if job.state is JobState.QUEUED else JobState.CANCELLING
            try:
                asked = self.transition(Transition(job.id, job.attempt, job.state, new, reason, cancel_mode=mode), now)
            except StaleTransitionError:
                continue  # it moved while we looked: look again
            failpoint(Failpoint.CANCEL_AFTER_COMMIT)
            return asked

    def _hurry(self, job: JobRecord, now: datetime) -> JobRecord:
        this = (jobs.c.id == job.id, jobs.c.state == JobState.CANCELLING)
        with self._writing.begin() as connection:
            connection.execute(update(jobs).where(*this).values(cancel_mode="now", updated_at=now))
            return get_job(connection, job.id)

    # ----------------------------------------------------------------------------------------------------- queue

    def active(self) -> list[LiveJob]:
        """Jobs that may have a driver, with their current attempts, oldest first."""
        with self._engine.begin() as connection:
            return read_active(connection)

    def has_waiting(self) -> bool:
        """Whether any job waits for its turn."""
        with self._engine.begin() as connection:
            return read_has_waiting(connection)

    def waiting(self, num_per_tenant: int, now: datetime) -> list[WaitingJob]:
        """Jobs that wait for their turn, by priority, then age: of each tenant the first ones whose backoff is over."""
        with self._engine.begin() as connection:
            return read_waiting(connection, num_per_tenant, now)

    def newcomers(self, since_id: str, limit: int) -> list[WaitingJob]:
        """Those of the newest jobs, after `since_id`, that are queued."""
        with self._engine.begin() as connection:
            return read_newcomers(connection, since_id, limit)

    def recovering(self, limit: int) -> list[WaitingJob]:
        """Jobs that recover, at most `limit` of them, whether their backoff is over or not."""
        with self._engine.begin() as connection:
            return read_recovering(connection, limit)

    def overdue(self, now: datetime, limit: int) -> list[OverdueJob]:
        """Jobs past their deadlines that nobody has asked to stop yet."""
        with self._engine.begin() as connection:
            return read_overdue(connection, now, limit)

    def tenant_limits(self) -> dict[str, TenantLimits]:
        """What tenants may take, of those that have limits of their own."""
        with self._engine.begin() as connection:
            return read_limits(connection)

    # -------------------------------------------------------------------------------------------------- attempts

    def attempt(self, job_id: str, number: int) -> AttemptRecord | None:
        """An attempt of a job, or None."""
        with self._engine.begin() as connection:
            return find_attempt(connection, job_id, number)

    def attempts(self, job_id: str) -> list[AttemptRecord]:
        """All attempts of a job, the first one first."""
        query = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
        with self._engine.begin() as connection:
            return [attempt_record(row) for row in connection.execute(query).mappings()]

    def set_token(self, job_id: str, number: int, token_hash: str, fence: Fence | None = None) -> None:
        """Keep the hash of an attempt's token, before anybody is told the token."""
        with self._writing.begin() as connection:
            hold(connection, fence)
            update_attempt(connection, job_id, number, {"token_hash": token_hash})

    def mark_submitted(self, job_id: str, number: int, now: datetime, fence: Fence | None = None) -> None:
        """The cluster has accepted an attempt."""
        with self._writing.begin() as connection:
            hold(connection, fence)
            update_attempt(connection, job_id, number, {"submitted_at": func.coalesce(attempts.c.submitted_at, now)})

    def note_reason(
        self, job_id: str, number: int, reason: Reason, message: str | None, fence: Fence | None = None
    ) -> None:
        """Why an attempt is about to be ended by us."""
        with self._writing.begin() as connection:
            hold(connection, fence)
            update_attempt(connection, job_id, number, {"reason": reason, "message": message})

    def heartbeat(self, job_id: str, number: int, token: str, beat: Heartbeat, now: datetime) -> HeartbeatReply:
        """Take in what rank 0 says; raises UnknownAttemptError, WrongTokenError or FencedOffError."""
        self._check_token(job_id, number, token)  # first, as strangers must not take the lock to write
        with self._writing.begin() as connection:
            job = lock_job(connection, job_id)
            if job.attempt != number or job.state in TERMINAL_STATES:
                raise FencedOffError
            if job.state in {JobState.STARTING, JobState.RECOVERING}:
                move(connection, Transition(job.id, number, job.state, JobState.RUNNING, Reason.FIRST_HEARTBEAT), now)
                job = get_job(connection, job_id)
            # Who speaks was submitted, also where we were killed before we could note it.
            submitted_at = func.coalesce(attempts.c.submitted_at, now)
            update_attempt(connection, job_id, number, {"heartbeat_at": now, "submitted_at": submitted_at})
            store_progress(connection, job, beat, now)
            store_epochs(connection, job, beat.finished_epochs, now)
            failpoint(Failpoint.HEARTBEAT_BEFORE_COMMIT)
        failpoint(Failpoint.HEARTBEAT_AFTER_COMMIT)
        return HeartbeatReply(action=_reply(job))

    def _check_token(self, job_id: str, number: int, token: str) -> None:
        attempt = self.attempt(job_id, number)
        if attempt is None:
            raise UnknownAttemptError
        if attempt.token_hash is None or not hmac.compare_digest(hash_token(token), attempt.token_hash):
            raise WrongTokenError

    # ---------------------------------------------------------------------------------------------------- events

    def follow(self, job_id: str, after: int, limit: int) -> tuple[JobRecord, list[EventRecord]] | None:
        """A job and its events with ids above `after`, both as of one moment; None if there is no such job."""
        query = select(job_events).where(job_events.c.job_id == job_id, job_events.c.id > after)
        query = query.order_by(job_events.c.id).limit(limit)
        with self._engine.begin() as connection:
            # Events first: under READ COMMITTED the job may then be newer than its events, never older.
            events = [event_record(row) for row in connection.execute(query).mappings()]
            job = find_job(connection, job_id)
            return None if job is None else (job, events)


def _not_by_index(wanted: JobFilter) -> frozenset[str]:
    """Columns of a filter that are not to be searched by index: SQLite, which keeps no statistics, does not know that
    few jobs are of a study, or of a name, and may take any other index that fits as well."""
    if wanted.study_id is not None:
        return frozenset({"state", "name", "method"})
    return frozenset({"method"}) if wanted.name is not None else frozenset()


def _reply(job: JobRecord) -> Literal["continue", "stop", "abort"]:
    if job.state is not JobState.CANCELLING:
        return "continue"
    return "abort" if job.cancel_mode == "now" else "stop"
