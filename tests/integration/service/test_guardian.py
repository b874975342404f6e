"""The guardian ends everything it started, daemons included, however its parent ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from marked_processes import MARK, kill_marked, marked, wait_until

PARENT = """
import sys, time
from pathlib import Path
from service.embedded.guardian import Guardian, RemoveAtEnd, Start
import os
folder = Path(sys.argv[1])
guardian = Guardian()
guardian.send(RemoveAtEnd(str(folder / "temp")))
(folder / "temp").mkdir()
env = dict(os.environ)
daemonises = "(setsid sh -c 'trap : TERM; while :; do sleep 1; done' &) ; echo started; exec sleep 1000"
guardian.send(Start("server", ("sh", "-c", daemonises), env, str(folder / "log")))
(folder / "guardian.pid").write_text(str(guardian.pid))
while sys.stdin.readline() != "close\\n":
    pass
guardian.close()
print("closed", flush=True)
"""


class Family:
    """A parent with its guardian, a server, and a daemon of the server that ignores SIGTERM."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {MARK: self.mark}, text=True,
        )  # fmt: skip
        wait_until(lambda: len(marked(self.mark)) >= 4, "parent, guardian, server and daemon run")

    @property
    def guardian(self) -> psutil.Process:
        return psutil.Process(int((self.folder / "guardian.pid").read_text()))

    def assert_gone(self) -> None:
        wait_until(lambda: not marked(self.mark), lambda: f"still there: {marked(self.mark)}")
        wait_until(lambda: not (self.folder / "temp").exists(), "the temporary folder is removed")


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    family = Family(tmp_path)
    yield family
    kill_marked(family.mark)
    family.parent.communicate()


def test_closing_ends_all(family: Family) -> None:
    out, _ = family.parent.communicate("close\n", timeout=60)
    assert out == "closed\n"
    family.assert_gone()
    assert (family.folder / "log").read_text() == "started\n"


def test_killing_the_parent_ends_all(family: Family) -> None:
    family.parent.kill()
    family.parent.wait()
    family.assert_gone()


def test_killing_the_guardian_leaves_all_to_the_parent(family: Family) -> None:
    family.guardian.kill()
    time.sleep(0.1)
    family.parent.communicate("close\n", timeout=60)
    wait_until(lambda: not marked(family.mark), lambda: f"still there: {marked(family.mark)}")


def test_a_terminal_s_ctrl_c_passes_the_guardian_by(family: Family) -> None:
    family.guardian.send_signal(signal.SIGINT)
    family.guardian.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert len(marked(family.mark)) >= 4
    family.parent.communicate("close\n", timeout=60)
    family.assert_gone()
