"""The tables, for SQLite and PostgreSQL alike. A change here needs a new file in migrations/versions."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time: aware in Python, in UTC in the database (SQLite drops the zone, so we put it back)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (SQLAlchemy names it)
        """Python to database."""
        assert value is None or value.tzinfo is not None, "times bear their zone"
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (SQLAlchemy names it)
        """Database to Python."""
        return value if value is None or value.tzinfo is not None else value.replace(tzinfo=UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(26), primary_key=True),  # sorts by creation
    Column("name", String(200), nullable=False),
    Column("method", String(32), nullable=False),
    Column("spec", JSON(none_as_null=True), nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_since", UtcDateTime, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("message", Text),
    Column("attempt", Integer, nullable=False),  # the current one; only it may publish
    Column("num_failures", Integer, nullable=False),
    Column("progress", JSON(none_as_null=True)),
    Column("mlflow_run_id", String(64)),
    Column("mlflow_experiment_id", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Index(None, "state", "id"),
    Index(None, "name", "id"),
    Index(None, "method", "id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("token_hash", String(64)),  # SHA-256 of the bearer token; null until attempt.json is written
    Column("created_at", UtcDateTime, nullable=False),
    Column("submitted_at", UtcDateTime),  # the cluster has accepted it
    Column("heartbeat_at", UtcDateTime),  # the last one
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("kind", String(8), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(32)),
    Column("message", Text),
    Column("epoch", Integer),  # null but in epoch events; each epoch is told once
    Column("metrics", JSON(none_as_null=True)),
    UniqueConstraint("job_id", "epoch"),
    Index(None, "job_id", "id"),
    sqlite_autoincrement=True,  # ids are never used again
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
