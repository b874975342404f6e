"""What tests of several kinds share: one local Ray and one PostgreSQL for the whole session."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings
from postgres_server import PostgresServer, postgres_server
from pydantic import SecretStr

from service.cluster.launcher import LauncherUnavailableError
from service.cluster.ray_launcher import RayLauncher
from service.embedded.local_servers import LocalServer, ray_head
from service.store.database import migrate, open_engine


def pytest_addoption(parser: pytest.Parser) -> None:
    """How large the runs are that `make test` makes small."""
    parser.addoption("--api-examples", type=int, default=2, help="cases that schemathesis draws for each operation")
    parser.addoption("--kill-rounds", type=int, default=2, help="rounds in which a process is killed")
    parser.addoption("--kill-from", type=int, default=0, help="number of the first round")
    parser.addoption("--kill-seed", type=int, default=0, help="chooses the moments of the kills")


def pytest_configure() -> None:
    """Let programs that tests start be interrupted: a shell that runs pytest in the background has them ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # No test asserts a time, not even that of one example: a busy machine is no defect.
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")
    if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: none has a second one to compute on
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[LocalServer]:
    """A local Ray head with two CPUs; everything of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: Ray puts sockets there
    server = ray_head(folder, folder / "token", num_cpus=2)
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(server.argv, stdout=log, stderr=log, env=server.env, start_new_session=True)
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 180
        while not _answers(server):
            assert head.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < deadline, "Ray's dashboard did not start"
            time.sleep(0.5)
        yield server
    finally:
        if head.poll() is None:
            family = psutil.Process(head.pid).children(recursive=True)
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        _, left = psutil.wait_procs(family, timeout=5)
        for process in left:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """URL of a PostgreSQL database of the test's own, its schema up to date."""
    database = postgres.new_database()
    yield postgres.url(database)
    postgres.drop(database)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite database of the test's own, its schema up to date."""
    url = f"sqlite:///{tmp_path}/database/hush.db"
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of a database of the test's own, its schema up to date: the test runs once on each kind of database."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def _answers(server: LocalServer) -> bool:
    launcher = RayLauncher(server.url, Path(sys.executable), SecretStr(server.token or ""))
    try:
        return bool(launcher.nodes())
    except LauncherUnavailableError:
        return False
    finally:
        launcher.close()
