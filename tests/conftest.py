"""What tests of several kinds share: one local Ray for the whole session."""

from __future__ import annotations

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
from pydantic import SecretStr

from service.cluster.launcher import LauncherUnavailableError
from service.cluster.ray_launcher import RayLauncher
from service.embedded.local_servers import LocalServer, ray_head


def pytest_addoption(parser: pytest.Parser) -> None:
    """How large the runs are that `make test` makes small."""
    parser.addoption("--api-examples", type=int, default=2, help="cases that schemathesis draws for each operation")


def pytest_configure() -> None:
    """Let programs that tests start be interrupted: a shell that runs pytest in the background has them ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


def _answers(server: LocalServer) -> bool:
    launcher = RayLauncher(server.url, Path(sys.executable), SecretStr(server.token or ""))
    try:
        return bool(launcher.nodes())
    except LauncherUnavailableError:
        return False
    finally:
        launcher.close()
