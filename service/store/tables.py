"""The tables, for SQLite and PostgreSQL alike. A change here needs a new file in migrations/versions."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
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

ID = String(26)
"""An id of service.jobs.ids, which sorts by creation."""

TENANT = String(64)

RISING = BigInteger().with_variant(Integer, "sqlite")
"""A key that the database counts up. SQLite does so for INTEGER only."""

studies = Table(
    "studies",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", TENANT, nullable=False),
    Column("name", String(200), nullable=False),
    Column("spec", JSON(none_as_null=True), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("cancelled_at", UtcDateTime),
    Index(None, "tenant", "id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", TENANT, nullable=False, server_default="default"),
    Column("name", String(200), nullable=False),
    Column("method", String(32), nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("spec", JSON(none_as_null=True), nullable=False),
    Column("study_id", ForeignKey("studies.id")),
    Column("study_index", Integer),  # its place in the study's grid, from 0
    Column("retry_of", ForeignKey("jobs.id")),  # the failed job whose checkpoints it goes on from
    Column("state", String(16), nullable=False),
    Column("state_since", UtcDateTime, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("message", Text),
    Column("attempt", Integer, nullable=False),  # the current one; only it may publish
    Column("num_failures", Integer, nullable=False),
    Column("not_before", UtcDateTime),  # a job that recovers is not started again earlier
    Column("deadline_at", UtcDateTime),
    Column("cancel_mode", String(8)),  # null until a stop is asked for
    Column("progress", JSON(none_as_null=True)),
    Column("mlflow_run_id", String(64)),
    Column("mlflow_experiment_id", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Index(None, "tenant", "id"),
    Index(None, "tenant", "state", "id"),
    Index(None, "tenant", "name", "id"),
    Index(None, "tenant", "method", "id"),
    Index(None, "tenant", "state", "name", "id"),
    Index(None, "tenant", "state", "method", "id"),
    Index(None, "tenant", "study_id", "id"),
    Index(None, "state", "tenant", "priority", "id"),
    Index(None, "state", "deadline_at"),
    Index(None, "study_id", "study_index"),
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
    Column("ended_at", UtcDateTime),
    Column("reason", String(32)),  # why it ended
    Column("message", Text),
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", RISING, primary_key=True),
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
    Column("tenant", TENANT, primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_hash", String(64), nullable=False),  # SHA-256 of what was asked for, and of where
    Column("subject_id", ID, nullable=False),  # the job or study that was made
    Column("created_at", UtcDateTime, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("token", RISING, nullable=False, autoincrement=False),  # one more with each holder: the fence
    Column("expires_at", UtcDateTime, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", TENANT, primary_key=True),
    Column("max_running_jobs", Integer),  # null: as the settings say
    Column("max_workers", Integer),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", TENANT, nullable=False),
    Column("name", String(200), nullable=False),
    Column("role", String(16), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),  # SHA-256 of the bearer token
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Index(None, "tenant", "id"),
)

data_sets = Table(
    "data_sets",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", TENANT, nullable=False),
    Column("name", String(200), nullable=False),
    Column("manifest", Text, nullable=False),
    Column("summary", JSON(none_as_null=True), nullable=False),  # what the manifest says
    Column("check", JSON(none_as_null=True)),  # what the last check found; null before the first
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("tenant", "name"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", TENANT, nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", String(128), nullable=False),  # signs each delivery, so it is kept as it is
    Column("states", JSON, nullable=False),  # changes to these are told
    Column("created_at", UtcDateTime, nullable=False),
    Index(None, "tenant", "id"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", RISING, primary_key=True),
    Column("webhook_id", ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("event_id", ForeignKey("job_events.id"), nullable=False),
    Column("num_tries", Integer, nullable=False, server_default="0"),
    Column("next_try_at", UtcDateTime),  # null once it is delivered or given up
    Column("delivered_at", UtcDateTime),
    Column("last_error", Text),
    UniqueConstraint("webhook_id", "event_id"),
    Index(None, "next_try_at"),
    sqlite_autoincrement=True,
)
