"""What happened to jobs, for those who follow them: a cheap look at many jobs, and what is new of one.

Whoever follows asks job by job for ids above the last one he saw. Over all jobs at once that would lose events: on
PostgreSQL two transactions may become visible in another order than they took their ids. Within one job they cannot
(see service.store.writes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, select

from service.jobs.records import EventRecord, event_record
from service.jobs.states import JobState
from service.store.tables import job_events, jobs
from trainer.run_schema import Progress

JOBS_PER_QUERY = 500


@dataclass(frozen=True)
class Stamp:
    """Differs from an earlier one of the same job if the job has changed in between."""

    updated_at: datetime
    last_event_id: int | None


@dataclass(frozen=True)
class News:
    """How a job stands, and its events so far; the events are never older than the rest."""

    state: JobState
    progress: Progress | None
    events: Sequence[EventRecord]


class EventLog:
    """The events of all jobs."""

    def __init__(self, engine: Engine) -> None:
        """`engine` comes from `database.open_engine`."""
        self._engine = engine

    def stamps(self, job_ids: Sequence[str]) -> dict[str, Stamp]:
        """The stamps of these jobs: for each, two lookups in an index."""
        last = select(job_events.c.id).where(job_events.c.job_id == jobs.c.id).order_by(job_events.c.id.desc()).limit(1)
        query = select(jobs.c.id, jobs.c.updated_at, last.correlate(jobs).scalar_subquery())
        batches = (job_ids[start : start + JOBS_PER_QUERY] for start in range(0, len(job_ids), JOBS_PER_QUERY))
        with self._engine.begin() as connection:
            rows = [row for batch in batches for row in connection.execute(query.where(jobs.c.id.in_(batch)))]
        return {job_id: Stamp(updated_at, last_event_id) for job_id, updated_at, last_event_id in rows}

    def news(self, job_id: str, after: int, limit: int) -> News:
        """How a job that is there stands, and its first events with ids above `after`."""
        job_query = select(jobs.c.state, jobs.c.progress).where(jobs.c.id == job_id)
        event_query = select(job_events).where(job_events.c.job_id == job_id, job_events.c.id > after)
        with self._engine.begin() as connection:
            # The job first: under READ COMMITTED one that has ended then has its last event in the second answer.
            state, progress = connection.execute(job_query).one()
            rows = connection.execute(event_query.order_by(job_events.c.id).limit(limit)).mappings()
            events = [event_record(row) for row in rows]
        return News(JobState(state), None if progress is None else Progress.model_validate(progress), events)
