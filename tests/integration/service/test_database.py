"""The database as several processes and a user's settings meet it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from postgres_server import PostgresServer
from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError

from service.store import database
from service.store.database import open_engine
from service.store.leases import Leases
from service.store.tables import metadata
from service.store.writes import hold

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TESTS = Path(__file__).parents[2]
MIGRATE = """
import sys
from service.store.database import migrate, open_engine
print("ready", flush=True)
sys.stdin.readline()
migrate(open_engine(sys.argv[1]))
"""
SERVE_AND_WAIT = """
import sys
sys.path.insert(0, sys.argv[1])
from postgres_server import postgres_server
with postgres_server() as server:
    print(server.folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["sqlite", "postgres"])
def blank_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database with nothing in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/hush.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url(server.new_database(template="template0"))


def test_processes_that_start_at_once_all_find_the_schema_up_to_date(blank_url: str) -> None:
    argv = [sys.executable, "-c", MIGRATE, blank_url]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outcomes = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outcomes
    engine = open_engine(blank_url)
    assert set(metadata.tables) <= set(inspect(engine).get_table_names())
    engine.dispose()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_url_may_leave_the_driver_out(postgres: PostgresServer, scheme: str) -> None:
    engine = open_engine(postgres.url("postgres").replace("postgresql+psycopg", scheme))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()


def test_a_lease_is_to_be_had_though_its_holder_fell_asleep_amid_a_write(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE_TIMEOUT_MS", 200)
    sleeper, other = open_engine(postgres_url), open_engine(postgres_url)
    fence = Leases(sleeper).acquire("reconciler", "sleeper", NOW, ttl_s=15)
    with sleeper.connect() as connection:
        hold(connection, fence)
        assert Leases(other).acquire("reconciler", "other", NOW + timedelta(seconds=16), ttl_s=15) is not None
        with pytest.raises(DBAPIError, match="idle-in-transaction timeout"):
            hold(connection, fence)
        connection.invalidate()
    for engine in (sleeper, other):
        engine.dispose()


def test_the_server_of_a_killed_test_process_ends() -> None:
    argv = [sys.executable, "-c", SERVE_AND_WAIT, str(TESTS)]
    owner = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    family = psutil.Process(owner.pid).children(recursive=True)
    assert "postgres" in {process.name() for process in family}
    owner.kill()
    owner.communicate()
    deadline = time.monotonic() + 60
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family):
        assert time.monotonic() < deadline, family
        time.sleep(0.05)
    shutil.rmtree(folder)
