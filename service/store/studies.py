"""Studies in SQL. A study and all its jobs are stored in one transaction, and cancelled in one."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from datetime import datetime
from hashlib import sha256

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, Select, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.jobs.ids import new_id
from service.jobs.records import CancelMode, Fence, JobRecord, Submission, Transition, job_record
from service.jobs.states import LIVE_STATES, JobState, Reason
from service.store.database import writing
from service.store.tables import job_events, jobs, studies
from service.store.writes import find_key, hold, insert_job, insert_key, move
from service.studies.records import EpochValue, StudyHead, StudyJob, StudyRecord
from service.studies.states import JobCounts
from service.studies.study_spec import AshaSpec, StudySpec
from trainer.run_schema import Progress
from trainer.spec import JobSpec


def study_digest(spec: StudySpec) -> str:
    """SHA-256 of a study that is asked for."""
    return sha256(f"study\n{spec.model_dump_json()}".encode()).hexdigest()


class Studies:
    """The studies of one database."""

    def __init__(self, engine: Engine) -> None:
        """`engine` comes from `database.open_engine`."""
        self._engine = engine
        self._writing = writing(engine)

    def find_created(self, tenant: str, spec: StudySpec, key: str) -> StudyRecord | None:
        """The study that was made under an idempotency key; IdempotencyConflictError if it was something else."""
        with self._engine.begin() as connection:
            study_id = find_key(connection, tenant, key, study_digest(spec))
            return None if study_id is None else _get(connection, study_id)

    def create(
        self, tenant: str, spec: StudySpec, planned: Sequence[JobSpec], now: datetime, key: str | None = None
    ) -> tuple[StudyRecord, bool]:
        """Store a study with `planned`, its jobs in order, once for each idempotency key; says whether it is new."""
        digest = study_digest(spec)
        try:
            with self._writing.begin() as connection:
                if key is not None and (known := find_key(connection, tenant, key, digest)):
                    return _get(connection, known), False
                study_id = _insert_study(connection, tenant, spec, planned, now)
                if key is not None:
                    insert_key(connection, tenant, key, digest, subject_id=study_id, now=now)
                return _get(connection, study_id), True
        except IntegrityError:
            # PostgreSQL only: another request stored the same key between our look and our insert.
            if key is not None and (known_study := self.find_created(tenant, spec, key)):
                return known_study, False
            raise

    def get(self, study_id: str) -> StudyRecord | None:
        """A study, or None."""
        with self._engine.begin() as connection:
            return _find(connection, study_id)

    def page(self, tenant: str, limit: int, before_id: str | None = None) -> list[StudyHead]:
        """A tenant's newest studies, at most `limit`, older than `before_id`."""
        query = select(*(studies.c[name] for name in _HEAD_COLUMNS)).where(studies.c.tenant == tenant)
        query = query.order_by(studies.c.id.desc()).limit(limit)
        if before_id is not None:
            query = query.where(studies.c.id < before_id)
        with self._engine.begin() as connection:
            return [StudyHead(**row) for row in connection.execute(query).mappings()]

    def counts(self, study_ids: Collection[str]) -> dict[str, JobCounts]:
        """How many jobs of each study are in which state, and why."""
        kinds = (jobs.c.study_id, jobs.c.state, jobs.c.reason)
        query = select(*kinds, func.count()).where(jobs.c.id.in_(_current(study_ids))).group_by(*kinds)
        found: dict[str, dict[tuple[JobState, Reason], int]] = {study_id: {} for study_id in study_ids}
        with self._engine.begin() as connection:
            for study_id, state, reason, num in connection.execute(query):
                found[study_id][JobState(state), Reason(reason)] = num
        return dict(found)

    def jobs(self, study_id: str) -> list[StudyJob]:
        """All jobs of a study, in its order. One that was retried has left its place to the new one."""
        columns = [jobs.c[name] for name in _JOB_COLUMNS]
        query = select(*columns).where(jobs.c.id.in_(_current([study_id]))).order_by(jobs.c.study_index)
        with self._engine.begin() as connection:
            return [_study_job(row) for row in connection.execute(query).mappings()]

    def whole_jobs(self, study_id: str) -> list[JobRecord]:
        """The same jobs, with their specs."""
        query = select(jobs).where(jobs.c.id.in_(_current([study_id]))).order_by(jobs.c.study_index)
        with self._engine.begin() as connection:
            return [job_record(row) for row in connection.execute(query).mappings()]

    def cancel(self, study_id: str, now: datetime, mode: CancelMode = "graceful") -> StudyRecord:
        """Cancel all jobs of a study that wait and ask all that run to stop, at once: none starts in between.

        One that has ended stays as it is. Asked again with `now`, jobs that wind down are hurried.
        """
        this = (jobs.c.study_id == study_id, jobs.c.state.in_(sorted(LIVE_STATES)))
        with self._writing.begin() as connection:
            found = _lock(connection, *this)
            for job in found:
                _ask_to_stop(connection, job, mode, Reason.STUDY_CANCELLED, now)
            if found:
                first = func.coalesce(studies.c.cancelled_at, now)
                connection.execute(update(studies).where(studies.c.id == study_id).values(cancelled_at=first))
            return _get(connection, study_id)

    # ------------------------------------------------------------------------------------------------ early stopping

    def with_early_stop(self) -> list[tuple[str, AshaSpec]]:
        """Ids of studies of which a job trains and which stop early, with their rules."""
        rule = studies.c.spec["early_stop"]
        training = select(jobs.c.study_id).where(jobs.c.state == JobState.RUNNING, jobs.c.study_id.is_not(None))
        stops = rule["kind"].as_string().is_not(None)
        query = select(studies.c.id, rule).where(studies.c.id.in_(training), stops).order_by(studies.c.id)
        with self._engine.begin() as connection:
            return [(study_id, AshaSpec.model_validate(spec)) for study_id, spec in connection.execute(query)]

    def num_told(self, study_id: str, epochs: Collection[int]) -> int:
        """How many entries `told` has."""
        query = select(func.count()).select_from(_EVENTS_OF_JOBS).where(*_told(study_id, epochs))
        with self._engine.begin() as connection:
            return int(connection.execute(query).scalar_one())

    def told(self, study_id: str, epochs: Collection[int]) -> list[EpochValue]:
        """What a study's jobs told after any of these epochs, in the order they told it."""
        num_epochs = jobs.c.spec["schedule"]["epochs"].as_integer()
        columns = (jobs.c.id, jobs.c.study_index, job_events.c.epoch, num_epochs, job_events.c.metrics)
        query = select(*columns).select_from(_EVENTS_OF_JOBS).where(*_told(study_id, epochs)).order_by(job_events.c.id)
        with self._engine.begin() as connection:
            return [EpochValue(*row[:4], row[4] or {}) for row in connection.execute(query)]

    def stop_early(self, job_ids: Collection[str], now: datetime, fence: Fence | None) -> list[str]:
        """Ask those of these jobs that have started and have not ended to stop; their ids. LeaseLostError if the asker
        has lost its lease."""
        started = sorted(LIVE_STATES - {JobState.QUEUED, JobState.CANCELLING})
        with self._writing.begin() as connection:
            hold(connection, fence)
            found = _lock(connection, jobs.c.id.in_(job_ids), jobs.c.state.in_(started))
            for job in found:
                _ask_to_stop(connection, job, "graceful", Reason.EARLY_STOPPED, now)
            return [job.id for job in found]


def _insert_study(
    connection: Connection, tenant: str, spec: StudySpec, planned: Sequence[JobSpec], now: datetime
) -> str:
    study_id = new_id(now, secrets.randbits(80))
    row = {"id": study_id, "tenant": tenant, "name": spec.name, "spec": spec.model_dump(mode="json"), "created_at": now}
    connection.execute(insert(studies).values(row))
    job_ids = sorted(new_id(now, secrets.randbits(80)) for _ in planned)  # of one moment, they queue in this order
    for index, (job_id, job) in enumerate(zip(job_ids, planned, strict=True)):
        insert_job(connection, Submission(tenant, job, study_id, index), now, job_id)
    return study_id


def _ask_to_stop(connection: Connection, job: JobRecord, mode: CancelMode, reason: Reason, now: datetime) -> None:
    """Cancel a locked job that waits, ask one that runs to stop, hurry one that winds down."""
    if job.state is not JobState.CANCELLING:
        new = JobState.CANCELLED if job.state is JobState.QUEUED else JobState.CANCELLING
        move(connection, Transition(job.id, job.attempt, job.state, new, reason, cancel_mode=mode), now)
    elif mode == "now" and job.cancel_mode != "now":
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(cancel_mode=mode, updated_at=now))


def _lock(connection: Connection, *which: ColumnElement[bool]) -> list[JobRecord]:
    """These jobs, which nobody else changes before this transaction ends; locked in one order by everybody."""
    query = select(jobs).where(*which).order_by(jobs.c.id).with_for_update()
    return [job_record(row) for row in connection.execute(query).mappings()]


def _find(connection: Connection, study_id: str) -> StudyRecord | None:
    row = connection.execute(select(studies).where(studies.c.id == study_id)).mappings().first()
    return None if row is None else _study(row)


def _get(connection: Connection, study_id: str) -> StudyRecord:
    study = _find(connection, study_id)
    assert study is not None, f"study {study_id} is not there"
    return study


def _study(row: RowMapping) -> StudyRecord:
    return StudyRecord(**{name: row[name] for name in _HEAD_COLUMNS}, spec=StudySpec.model_validate(row["spec"]))


def _current(study_ids: Collection[str]) -> Select[tuple[str]]:
    """Ids of the jobs that hold the places of these studies: of several at one place the newest, a retry."""
    ids = select(func.max(jobs.c.id)).where(jobs.c.study_id.in_(study_ids))
    return ids.group_by(jobs.c.study_id, jobs.c.study_index)


def _told(study_id: str, epochs: Collection[int]) -> tuple[ColumnElement[bool], ...]:
    return jobs.c.id.in_(_current([study_id])), job_events.c.epoch.in_(epochs)


_EVENTS_OF_JOBS = jobs.join(job_events, jobs.c.id == job_events.c.job_id)
_HEAD_COLUMNS = ("id", "tenant", "name", "created_at", "cancelled_at")
_JOB_COLUMNS = ("id", "study_index", "name", "method", "state", "reason", "message", "progress")


def _study_job(row: RowMapping) -> StudyJob:
    return StudyJob(
        id=row["id"],
        index=row["study_index"],
        name=row["name"],
        method=row["method"],
        state=JobState(row["state"]),
        reason=Reason(row["reason"]),
        message=row["message"],
        progress=None if row["progress"] is None else Progress.model_validate(row["progress"]),
    )
