"""API processes that can be killed: real ones that really listen, on a cluster of files; what they import is shared.

A fork server imports the service once and forks a process for each start, which saves its two seconds of imports.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx
from file_launcher import FileLauncher

from service.access.roles import Role
from service.api.app import create_app
from service.api.server import Server
from service.embedded.local_servers import free_ports
from service.settings import Settings
from service.store.database import open_engine
from service.store.tokens import NewToken, Tokens

HOST = "127.0.0.1"
PATIENCE_S = 60


def serve(home: Path, environment: dict[str, str], port: int) -> None:
    """What the process does; its settings come from the environment, as everywhere."""
    os.environ.update(environment)
    logging.basicConfig(
        filename=home / f"api-{port}.log", level=logging.INFO, format="%(asctime)s %(name)s: %(message)s"
    )
    settings = Settings(home=home, public_url=f"http://{HOST}:{port}", reconcile_interval_s=0.05)
    Server(create_app(settings, launcher=FileLauncher(home / "cluster", num_cpus=4)), HOST, port).run()


@dataclass(frozen=True)
class Shared:
    """What all API processes of one test share."""

    home: Path
    environment: dict[str, str]
    token: str


class ApiProcess:
    """One API at a fixed address, started again whenever it was killed."""

    def __init__(self, shared: Shared) -> None:
        (self.port,) = free_ports(0)
        self.url = f"http://{HOST}:{self.port}"
        self.num_kills = 0
        self._shared = shared
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["service.api.app", "service.api.server"])
        self._process: ForkServerProcess | None = None

    def start(self, failpoint: str | None = None) -> None:
        """Start it, to be killed at a failpoint if one is named."""
        environment = self._shared.environment | ({"HUSH_FAILPOINT": failpoint} if failpoint else {})
        self._process = self._context.Process(target=serve, args=(self._shared.home, environment, self.port))
        self._process.start()

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.join()

    def keep_up(self) -> None:
        """Start it again if it was killed."""
        assert self._process is not None
        if self._process.exitcode is not None:
            assert self._process.exitcode == -signal.SIGKILL, f"it ended by itself: {self._process.exitcode}"
            self.num_kills += 1
            self._process.close()
            self.start()

    def ask(self, method: str, path: str, *, json: object = None, key: str | None = None) -> httpx.Response:
        """Ask until there is an answer: an API that is killed comes back and is asked again."""
        headers = {"Authorization": f"Bearer {self._shared.token}"} | ({"Idempotency-Key": key} if key else {})
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.keep_up()
            with contextlib.suppress(httpx.TransportError):
                return httpx.request(method, self.url + path, json=json, headers=headers, trust_env=False, timeout=30)
            assert time.monotonic() < deadline, f"nobody answers {method} {path}"
            time.sleep(0.02)

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_for(self, job_id: str, *states: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while (job := self.get(f"/api/v1/jobs/{job_id}"))["state"] not in states:
            assert time.monotonic() < deadline, f"still {job['state']}: {job['message']}"
            time.sleep(0.02)
        return dict(job)

    def stop(self) -> None:
        """End it in an orderly way."""
        assert self._process is not None
        self._process.terminate()
        self._process.join(30)
        assert self._process.exitcode is not None, "it did not end"
        self._process.close()


@contextmanager
def api_processes(home: Path, database_url: str, number: int = 1, **environment: str) -> Iterator[list[ApiProcess]]:
    """API processes on one database and one cluster, not started yet; whatever runs is ended afterwards."""
    home.mkdir()
    engine = open_engine(database_url)
    _, token = Tokens(engine).create(NewToken("default", "test", Role.ADMIN), datetime.now(UTC))
    engine.dispose()
    variables = {"HUSH_DATABASE_URL": database_url, "HUSH_RETRY_BACKOFF_S": "0.1", "HUSH_LEASE_TTL_S": "1"}
    shared = Shared(home, variables | environment, token)
    apis = [ApiProcess(shared) for _ in range(number)]
    try:
        yield apis
    finally:
        for api in apis:
            if api._process is not None:
                api.stop()
        FileLauncher(home / "cluster").kill_all()
