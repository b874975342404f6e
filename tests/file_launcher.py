"""A Launcher without Ray that several processes share, one after another or at a time: all it knows lies in a folder.

Its drivers are processes of their own. They outlive whoever started them, as they do on a cluster.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from service_stand_ins import STAND_IN_PYTHON

from service.cluster.launcher import DriverStatus, Node, Phase
from service.cluster.ray_launcher import command

RUN_DRIVER = Path(__file__).with_name("run_driver.sh")


class FileLauncher:
    """Runs drivers on this machine; `folder` has one folder for each."""

    def __init__(self, folder: Path, num_cpus: int = 2) -> None:
        self._folder, self._num_cpus = folder, num_cpus
        folder.mkdir(parents=True, exist_ok=True)

    def nodes(self) -> Sequence[Node]:
        return [Node(self._num_cpus, 0)]

    def submit(self, submission_id: str, run_dir: Path) -> None:
        place = self._folder / submission_id
        argv = [str(RUN_DRIVER), str(place), *command(STAND_IN_PYTHON, run_dir)]
        subprocess.run(["setsid", "--fork", *argv], check=True, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (place / "pid").exists():
            assert time.monotonic() < deadline, f"{submission_id} did not start"
            time.sleep(0.005)

    def status(self, submission_id: str) -> DriverStatus:
        place = self._folder / submission_id
        if not place.exists():
            return DriverStatus(Phase.LOST, "unknown")
        if not (place / "code").exists():
            return DriverStatus(Phase.RUNNING)
        code = int((place / "code").read_text())
        if (place / "stopped").exists():
            return DriverStatus(Phase.STOPPED)
        if code > 128:
            return DriverStatus(Phase.KILLED, f"killed by signal {code - 128}")
        return DriverStatus(Phase.SUCCEEDED) if code == 0 else DriverStatus(Phase.FAILED, self.output(submission_id))

    def stop(self, submission_id: str) -> None:
        if self.status(submission_id).phase is Phase.RUNNING:
            (self._folder / submission_id / "stopped").touch()
            self._signal(submission_id, signal.SIGTERM)

    def close(self) -> None:
        """The service ends; drivers go on, as on a cluster."""

    def output(self, submission_id: str) -> str:
        return (self._folder / submission_id / "output").read_text()

    def running(self) -> list[str]:
        """Ids of the drivers that run."""
        return [place.name for place in self._folder.iterdir() if self.status(place.name).phase is Phase.RUNNING]

    def kill_all(self) -> None:
        for name in self.running():
            self._signal(name, signal.SIGKILL)

    def _signal(self, submission_id: str, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(int((self._folder / submission_id / "pid").read_text()), number)
