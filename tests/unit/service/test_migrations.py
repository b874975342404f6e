"""A database of an earlier revision, with rows in it, is brought up to date and loses nothing."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import text

from service.jobs.states import JobState, Reason
from service.store.database import migrate, open_engine, writing
from service.store.store import Store
from service.store.tables import metadata
from trainer.spec import JobSpec

SPEC = JobSpec.model_validate({"name": "old", "data": {"manifest": "/m"}})
JOB_ID = "0" * 26
TIME = "2026-01-01 00:00:00+00:00"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/hush.db"


def test_rows_of_the_first_revision_are_kept(url: str) -> None:
    engine = open_engine(url)
    with writing(engine).begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(files("service.store") / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        values = {"id": JOB_ID, "spec": SPEC.model_dump_json(), "now": TIME}
        for statement in (
            (
                "INSERT INTO jobs (id, name, method, spec, state, state_since, reason, attempt, num_failures,"
                " created_at, updated_at) VALUES (:id, 'old', 'ivon', :spec, 'FAILED', :now,"
                " 'attempt_lost', 1, 0, :now, :now)"
            ),
            "INSERT INTO attempts (job_id, number, created_at) VALUES (:id, 1, :now)",
            (
                "INSERT INTO job_events (job_id, attempt, time, kind, state, reason)"
                " VALUES (:id, 1, :now, 'state', 'QUEUED', 'submitted')"
            ),
            "INSERT INTO idempotency_keys VALUES ('k', 'h', :id, :now)",
        ):
            connection.execute(text(statement), values)
    migrate(engine)
    store = Store(engine)
    job = store.get(JOB_ID)
    assert job is not None
    assert (job.tenant, job.state, job.reason, job.spec) == ("default", JobState.FAILED, Reason.HEAD_LOST, SPEC)
    followed = store.follow(JOB_ID, 0, 10)
    assert followed is not None
    assert len(followed[1]) == 1
    with engine.connect() as connection:
        keys = connection.execute(text("SELECT tenant, key, subject_id FROM idempotency_keys")).all()
        assert keys == [("default", "k", JOB_ID)]
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
    store.close()


def test_the_migrations_make_the_tables_as_they_are_declared(url: str) -> None:
    engine = open_engine(url)
    migrate(engine)
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()
