"""What is killed: a Ray head of the test's own, and API processes on one database, each started again when it dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from marked_processes import MARK, kill_marked, marked, wait_until

from service.embedded.local_servers import LOOPBACK, LocalServer, free_ports, ray_head
from tests.kill.plan import RAY_VICTIMS

READY_S = 180


class RayCluster:
    """One head with two CPUs. `keep_up` starts it again, as a supervisor of processes would."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._folder = Path(tempfile.mkdtemp(prefix="k-", dir="/tmp"))  # short: Ray puts sockets there
        self._temp = self._folder / "ray"
        self._temp.mkdir()
        self.server: LocalServer = ray_head(self._temp, self._folder / "token", num_cpus=2)
        self.num_starts = 0
        self._start()

    def keep_up(self) -> None:
        """Start the head again if it has ended."""
        if self._head.poll() is not None:
            self._clear()
            self._start()

    def kill(self, victim: str) -> bool:
        """SIGKILL one process of this kind; False if there is none."""
        for process in marked(self._mark, RAY_VICTIMS[victim]):
            with contextlib.suppress(Exception):
                process.send_signal(signal.SIGKILL)
                return True
        return False

    def wait_ready(self) -> None:
        """Wait until the head takes jobs."""
        headers = {"Authorization": f"Bearer {self.server.token}"}

        def answers() -> bool:
            self.keep_up()
            try:
                url = f"{self.server.url}/api/v0/nodes?detail=true"
                answer = httpx.get(url, headers=headers, trust_env=False, timeout=5)
                return answer.is_success and bool(answer.json()["data"]["result"]["result"])
            except (httpx.HTTPError, ValueError, KeyError, TypeError):
                return False

        wait_until(answers, "Ray is ready", timeout_s=READY_S)

    def close(self) -> None:
        """End it, and all that descends from it; to ask twice is fine."""
        if not self._folder.exists():
            return
        if self._head.poll() is None:
            self._head.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._head.wait(30)
        self._clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        self.num_starts += 1
        env = self.server.env | {MARK: self._mark}
        with (self._folder / "head.log").open("ab") as log:
            self._head = subprocess.Popen(self.server.argv, stdout=log, stderr=log, env=env, start_new_session=True)

    def _clear(self) -> None:
        """What a dead head leaves behind is no part of Hush: a supervisor's next start clears it away too."""
        self._head.wait()
        for what in RAY_VICTIMS.values():
            if what != "trainer.ray_entry":  # a driver must end by itself when its head is gone
                kill_marked(self._mark, what)
        kill_marked(self._mark, "ray::")
        kill_marked(self._mark, "site-packages/ray/")
        wait_until(lambda: not marked(self._mark, "site-packages/ray/"), "the dead head's processes are gone")
        shutil.rmtree(self._temp, ignore_errors=True)
        self._temp.mkdir(exist_ok=True)


class Api:
    """One API process at a fixed address. `keep_up` starts it again without its failpoint."""

    def __init__(self, mark: str, name: str, log: Path, settings: dict[str, str]) -> None:
        (self._port,) = free_ports(0)
        self.url = f"http://{LOOPBACK}:{self._port}"
        self._log, self._name = log, name
        self._env = {key: value for key, value in os.environ.items() if not key.startswith("HUSH_")}
        self._env |= {MARK: mark, "HUSH_PUBLIC_URL": self.url, **settings}
        self.num_starts = 0

    def start(self, failpoint: str | None = None) -> None:
        """Start it, to be killed at a failpoint if one is named."""
        env = self._env | ({"HUSH_FAILPOINT": failpoint} if failpoint else {})
        argv = [sys.executable, "-m", "service.cli", "api", "--host", LOOPBACK, "--port", str(self._port)]
        with self._log.open("ab") as log:
            log.write(f"---- {self._name} starts, failpoint {failpoint}\n".encode())
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
        self.num_starts += 1

    def wait_ready(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            self.keep_up()
            try:
                return httpx.get(f"{self.url}/healthz", trust_env=False, timeout=5).is_success
            except httpx.HTTPError:
                return False

        wait_until(answers, "the API answers", timeout_s=READY_S)

    def keep_up(self) -> bool:
        """Start it again if it was killed; whether it was."""
        code = self.process.poll()
        if code is None:
            return False
        assert code == -signal.SIGKILL, f"the API ended by itself with {code}; see its log:\n{self._log.read_text()}"
        self.start()
        return True

    def stop(self) -> None:
        """End it in an orderly way."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def ray_cluster(mark: str) -> Iterator[RayCluster]:
    """A cluster for a block of code."""
    cluster = RayCluster(mark)
    try:
        yield cluster
    finally:
        cluster.close()


def poll(until: Callable[[], bool], keep_up: Callable[[], None], timeout_s: float) -> bool:
    """Ask again and again, with everything kept up meanwhile; whether it came true in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        keep_up()
        if until():
            return True
        time.sleep(0.1)
    return False
