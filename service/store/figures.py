"""Figures of the database as a whole, for its operator: cheap enough to be asked every few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, Select, and_, func, select

from service.jobs.states import WAITING_STATES, JobState
from service.store.tables import attempts, jobs, webhook_deliveries


@dataclass(frozen=True)
class Figures:
    """How many of what there are, over all tenants."""

    jobs: Mapping[str, int]
    """By state."""
    attempts: Mapping[str, int]
    """That have ended, by reason."""
    oldest_waiting_since: datetime | None
    """Of the jobs that wait for their turn."""
    oldest_heartbeat_at: datetime | None
    """Of the jobs that run, the last heartbeat that is longest ago."""
    num_pending_deliveries: int
    """Of webhooks."""


def read_figures(engine: Engine) -> Figures:
    """The figures now."""
    by_state = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    ended = attempts.c.ended_at.is_not(None)
    by_reason = select(attempts.c.reason, func.count()).where(ended).group_by(attempts.c.reason)
    waiting = select(func.min(jobs.c.state_since)).where(jobs.c.state.in_(sorted(WAITING_STATES)))
    current = and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt)
    beats = select(func.min(attempts.c.heartbeat_at)).join(jobs, current).where(jobs.c.state == JobState.RUNNING)
    pending = select(func.count()).where(webhook_deliveries.c.next_try_at.is_not(None))
    with engine.begin() as connection:
        return Figures(
            jobs=_counts(connection, by_state),
            attempts=_counts(connection, by_reason),
            oldest_waiting_since=connection.execute(waiting).scalar_one(),
            oldest_heartbeat_at=connection.execute(beats).scalar_one(),
            num_pending_deliveries=connection.execute(pending).scalar_one(),
        )


def _counts(connection: Connection, query: Select[str, int]) -> dict[str, int]:
    return {row[0]: row[1] for row in connection.execute(query)}
