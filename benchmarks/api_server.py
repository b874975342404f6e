"""A `hush api` in a process of its own, on a database that is filled already; its cluster does not answer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil

from service.access.roles import Role
from service.store.database import open_engine
from service.store.tokens import NewToken, Tokens

READY_S = 60
NOBODY = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Api:
    """A server that listens."""

    port: int
    token: str
    """Of an admin of the tenant `default`."""
    database_url: str
    process: psutil.Process

    @property
    def rss_mb(self) -> float:
        """Its resident memory."""
        return self.process.memory_info().rss / 1e6


@contextmanager
def running_api(database_url: str, home: Path, roots: Path) -> Iterator[Api]:
    """Start it, and stop it at the end. Its log goes to a file, as it would."""
    engine = open_engine(database_url)
    token = Tokens(engine).create(NewToken("default", "bench", Role.ADMIN), datetime.now(UTC))[1]
    engine.dispose()
    port = _free_port()
    home.mkdir(parents=True, exist_ok=True)
    settings = {
        "HUSH_HOME": str(home),
        "HUSH_DATABASE_URL": database_url,
        "HUSH_ALLOWED_ROOTS": str(roots),
        "HUSH_RAY_ADDRESS": NOBODY,
        "HUSH_LOST_AFTER_S": "600",  # no cluster says that the drivers live, which begin when their process is there
        "HUSH_RATE_LIMIT_PER_MINUTE": "0",
    }
    argv = _dying_with_us([sys.executable, "-m", "service.cli", "api", "--port", str(port)])
    with (home / "service.log").open("w") as log:
        process = subprocess.Popen(argv, env=os.environ | settings, stdout=log, stderr=log)
    try:
        _wait_ready(port, process, home / "service.log")
        yield Api(port, token, database_url, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)


def _dying_with_us(argv: list[str]) -> list[str]:
    """The command that runs another one until this process ends, however it ends."""
    program = Path(__file__).parents[1] / "tests" / "dying_with_parent.py"
    us = (os.getpid(), os.getuid(), os.getgid(), signal.SIGTERM.value)
    return [sys.executable, "-I", str(program), *map(str, us), *argv]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"not ready after {READY_S} s: {log.read_text()}"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
