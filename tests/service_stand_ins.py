"""Parts for tests of the service: a launcher without Ray, a small data set, and a service that really listens."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from service.access.principal import DEFAULT_TENANT
from service.access.roles import Role
from service.api.app import create_app
from service.api.server import Server
from service.cluster.launcher import DriverStatus, Launcher, LauncherUnavailableError, Node, Phase
from service.cluster.ray_launcher import command
from service.settings import Settings
from service.store.database import open_engine
from service.store.tokens import NewToken, Tokens

STAND_IN_PYTHON = Path(__file__).with_name("stand_in_python.sh")


class SubprocessLauncher:
    """A Launcher without Ray: real processes, real signals, one machine, and a cluster that tests can take away."""

    def __init__(self, machines: Sequence[Node] = (Node(2, 0),)) -> None:
        self.machines = machines
        self.answers = True
        self._drivers: dict[str, subprocess.Popen[str]] = {}
        self._stopped: set[str] = set()
        self._logs: dict[str, Path] = {}

    def nodes(self) -> Sequence[Node]:
        self._ask()
        return self.machines

    def submit(self, submission_id: str, run_dir: Path) -> None:
        self.start(submission_id, command(STAND_IN_PYTHON, run_dir))

    def start(self, submission_id: str, argv: Sequence[str]) -> None:
        self._ask()
        if submission_id not in self._drivers:
            self._logs[submission_id] = next(Path(word) for word in argv if Path(word).is_dir()) / "driver.log"
            with self._logs[submission_id].open("w") as log:
                self._drivers[submission_id] = subprocess.Popen(argv, stdout=log, stderr=log, text=True)

    def status(self, submission_id: str) -> DriverStatus:
        self._ask()
        driver = self._drivers.get(submission_id)
        if driver is None:
            return DriverStatus(Phase.LOST, "unknown")
        code = driver.poll()
        if code is None:
            return DriverStatus(Phase.RUNNING)
        if submission_id in self._stopped:
            return DriverStatus(Phase.STOPPED)
        if code < 0:
            return DriverStatus(Phase.KILLED, f"killed by signal {-code}")
        log = self._logs[submission_id]
        return DriverStatus(Phase.SUCCEEDED) if code == 0 else DriverStatus(Phase.FAILED, log.read_text())

    def stop(self, submission_id: str) -> None:
        self._ask()
        driver = self._drivers.get(submission_id)
        if driver is not None and driver.poll() is None:
            self._stopped.add(submission_id)
            driver.terminate()

    def close(self) -> None:
        """The service ends; drivers go on, as on a cluster."""

    def lose_everything(self) -> None:
        """The cluster's head dies, and every driver with it."""
        for driver in self._drivers.values():
            driver.kill()
            driver.wait()
        self._drivers.clear()

    def num_running(self) -> int:
        return sum(driver.poll() is None for driver in self._drivers.values())

    def _ask(self) -> None:
        if not self.answers:
            raise LauncherUnavailableError("taken away")


@dataclass
class RunningService:
    """A service that listens on a free port of this machine."""

    client: httpx.Client
    """Bears `token`."""
    url: str
    settings: Settings
    server: Server
    tokens: Tokens
    token: str
    """Of an admin of the tenant `default`."""

    def new_token(self, role: Role = Role.ADMIN, tenant: str = DEFAULT_TENANT, **changes: Any) -> str:
        return self.tokens.create(NewToken(tenant, "test", role, **changes), datetime.now(UTC))[1]

    def client_of(self, token: str | None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def submit(self, manifest: Path, **changes: Any) -> dict[str, Any]:
        answer = self.client.post("/api/v1/jobs", json=spec_json(manifest, **changes))
        assert answer.status_code == 202, answer.text
        return answer.json()

    def wait(self, job_id: str, until: Callable[[dict[str, Any]], bool], timeout_s: float = 30) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            job = self.client.get(f"/api/v1/jobs/{job_id}").json()
            if until(job):
                return job
            assert time.monotonic() < deadline, f"still {job['state']}: {job['message']}"
            time.sleep(0.05)

    def wait_for(self, job_id: str, *states: str, timeout_s: float = 30) -> dict[str, Any]:
        return self.wait(job_id, lambda job: job["state"] in states, timeout_s)


def spec_json(manifest: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "completes",
        "data": {"manifest": str(manifest), "batch_size": 8, "image_size": 8},
        "model": {"arch": "small_cnn"},
        "schedule": {"epochs": 2},
        **changes,
    }


@contextmanager
def running_service(
    home: Path, launcher: Launcher | None, *, port: int = 0, **settings: Any
) -> Iterator[RunningService]:
    """Start a service on `home` and stop it at the end; the same home again continues where it was."""
    listener = socket.create_server(("127.0.0.1", port))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    quick = {"reconcile_interval_s": 0.1, "retry_backoff_s": 0.1, "rate_limit_per_minute": 0}
    configured = Settings(**{"home": home, "public_url": url, **quick, **settings})
    server = Server(create_app(configured, launcher=launcher), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    engine = open_engine(configured.database)
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        tokens = Tokens(engine)
        _, token = tokens.create(NewToken(DEFAULT_TENANT, "test", Role.ADMIN), datetime.now(UTC))
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
            yield RunningService(client, url, configured, server, tokens, token)
    finally:
        engine.dispose()
        server.stop()
        thread.join(30)
        listener.close()
        assert not thread.is_alive(), "the service did not stop"
