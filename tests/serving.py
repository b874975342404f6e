"""A `hush serve` of its own for a test, found again in all its processes and cleared away whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import httpx
from marked_processes import MARK, kill_marked, marked, wait_until

from service.embedded.home import find_server

HUSH = [sys.executable, "-m", "service.cli"]


class Serving:
    """A `hush serve` on a home of its own."""

    def __init__(self, tmp_path: Path, *options: str) -> None:
        self.options = options
        self.home, self.mark = tmp_path / "home", uuid.uuid4().hex
        # Ray's sockets need a short path, which pytest's folders are not.
        self.temp = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
        self.env = os.environ | {MARK: self.mark, "TMPDIR": str(self.temp), "HUSH_HOME": str(self.home)}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*HUSH, "serve", *self.options], env=self.env, stderr=subprocess.PIPE, text=True
        )

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal that asks for an orderly end; the exit code."""
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode

    def run(self, *argv: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*HUSH, *argv], env=self.env, capture_output=True, text=True, check=False, timeout=timeout_s
        )

    def runs(self, what: str) -> bool:
        return bool(marked(self.mark, what))

    def wait_ready(self) -> str:
        wait_until(lambda: find_server(self.home) is not None, "the API answers")
        server = find_server(self.home)
        assert server is not None

        def ready() -> bool:
            assert self.process.poll() is None
            return httpx.get(f"{server.url}/readyz", trust_env=False, timeout=30).is_success

        wait_until(ready, "Ray and MLflow are ready", timeout_s=240)
        return server.url

    @property
    def headers(self) -> dict[str, str]:
        """What the API asks of those who come without the command line."""
        server = find_server(self.home)
        assert server is not None
        return {"Authorization": f"Bearer {server.token}"}

    def assert_nothing_left(self) -> None:
        wait_until(lambda: not marked(self.mark), lambda: f"still there: {marked(self.mark)}")
        assert list(self.temp.iterdir()) == []
        assert not (self.home / "server.json").exists()
        assert not (self.home / "ray-token").exists()
        assert find_server(self.home) is None

    def clear_up(self) -> None:
        kill_marked(self.mark)
        self.process.communicate()
        shutil.rmtree(self.temp)
