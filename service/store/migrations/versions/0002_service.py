"""Tenants, tokens, leases, studies, data sets and webhooks; jobs that wait for a time, a deadline or a stop.

The tables are written out as they were at this revision. What was there keeps its rows: all jobs become those of the
tenant `default`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
ID = sa.String(26)
TENANT = sa.String(64)
RISING = sa.BigInteger().with_variant(sa.Integer, "sqlite")

REASONS = {"attempt_lost": "head_lost", "stopped": "user_cancelled"}
"""Reasons of before, and what they are called now."""


def upgrade() -> None:
    """Add what is new."""
    _create_studies()
    _alter_jobs()
    for column in (
        sa.Column("ended_at", TIME),
        sa.Column("reason", sa.String(32)),
        sa.Column("message", sa.Text()),
    ):
        op.add_column("attempts", column)
    if op.get_bind().dialect.name != "sqlite":  # whose INTEGER has 64 bits
        op.alter_column("job_events", "id", type_=sa.BigInteger())
    for table in ("jobs", "job_events"):
        for old, new in REASONS.items():
            op.execute(sa.text(f"UPDATE {table} SET reason = :new WHERE reason = :old").bindparams(new=new, old=old))  # noqa: S608
    _key_by_tenant()
    _create_access()
    _create_data_sets()
    _create_webhooks()


def _create_studies() -> None:
    op.create_table(
        "studies",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", TENANT, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("cancelled_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
    )
    op.create_index("ix_studies_tenant_id", "studies", ["tenant", "id"])


def _alter_jobs() -> None:
    for name in ("state", "name", "method"):
        op.drop_index(f"ix_jobs_{name}_id", "jobs")
    for column in (
        sa.Column("tenant", TENANT, nullable=False, server_default="default"),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("study_id", ID, sa.ForeignKey("studies.id", name="fk_jobs_study_id")),
        sa.Column("study_index", sa.Integer()),
        sa.Column("retry_of", ID, sa.ForeignKey("jobs.id", name="fk_jobs_retry_of")),
        sa.Column("not_before", TIME),
        sa.Column("deadline_at", TIME),
        sa.Column("cancel_mode", sa.String(8)),
    ):
        # Not in batches, which would make the table anew and, by that, drop what refers to it.
        op.add_column("jobs", column, inline_references=True)
    op.create_index("ix_jobs_tenant_id", "jobs", ["tenant", "id"])
    for name in ("state", "name", "method"):
        op.create_index(f"ix_jobs_tenant_{name}_id", "jobs", ["tenant", name, "id"])
    for name in ("name", "method"):
        op.create_index(f"ix_jobs_tenant_state_{name}_id", "jobs", ["tenant", "state", name, "id"])
    op.create_index("ix_jobs_tenant_study_id_id", "jobs", ["tenant", "study_id", "id"])
    op.create_index("ix_jobs_state_tenant_priority_id", "jobs", ["state", "tenant", "priority", "id"])
    op.create_index("ix_jobs_state_deadline_at", "jobs", ["state", "deadline_at"])
    op.create_index("ix_jobs_study_id_study_index", "jobs", ["study_id", "study_index"])


def _key_by_tenant() -> None:
    """Idempotency keys of each tenant by themselves, and for studies too."""
    op.rename_table("idempotency_keys", "idempotency_keys_0001")
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", TENANT, nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("body_hash", sa.String(64), nullable=False),
        sa.Column("subject_id", ID, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key", name="pk_idempotency_keys_tenant"),
    )
    op.execute(
        "INSERT INTO idempotency_keys (tenant, key, body_hash, subject_id, created_at)"
        " SELECT 'default', key, body_hash, job_id, created_at FROM idempotency_keys_0001"
    )
    op.drop_table("idempotency_keys_0001")


def _create_access() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("token", RISING, autoincrement=False, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_table(
        "tenants",
        sa.Column("name", TENANT, nullable=False),
        sa.Column("max_running_jobs", sa.Integer()),
        sa.Column("max_workers", sa.Integer()),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", TENANT, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("hash", name="uq_tokens_hash"),
    )
    op.create_index("ix_tokens_tenant_id", "tokens", ["tenant", "id"])


def _create_data_sets() -> None:
    op.create_table(
        "data_sets",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", TENANT, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.Column("check", sa.JSON()),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_data_sets"),
        sa.UniqueConstraint("tenant", "name", name="uq_data_sets_tenant_name"),
    )


def _create_webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", TENANT, nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(128), nullable=False),
        sa.Column("states", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
    )
    op.create_index("ix_webhooks_tenant_id", "webhooks", ["tenant", "id"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", RISING, nullable=False),
        sa.Column("webhook_id", ID, nullable=False),
        sa.Column("event_id", RISING, nullable=False),
        sa.Column("num_tries", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("next_try_at", TIME),
        sa.Column("delivered_at", TIME),
        sa.Column("last_error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name="fk_webhook_deliveries_webhook_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["event_id"], ["job_events.id"], name="fk_webhook_deliveries_event_id"),
        sa.UniqueConstraint("webhook_id", "event_id", name="uq_webhook_deliveries_webhook_id_event_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_webhook_deliveries_next_try_at", "webhook_deliveries", ["next_try_at"])


def downgrade() -> None:
    """Not offered: rows of other tenants would have no place in the schema of before."""
    raise RuntimeError("revision 0002 cannot be undone; restore the backup that was made before it")
