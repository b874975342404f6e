"""`hush demo` for real, from an empty home folder: the table comes, the labels it suspects are wrong, nothing stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from marked_processes import MARK, kill_marked, marked, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Demo:
    """A `hush demo` in an empty home folder."""

    def __init__(self, home: Path, *options: str) -> None:
        self.mark = uuid.uuid4().hex
        self.temp = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))  # Ray's sockets need a short path
        env = {key: value for key, value in os.environ.items() if not key.startswith("HUSH_")}
        env |= {MARK: self.mark, "TMPDIR": str(self.temp), "HOME": str(home)}
        argv = [sys.executable, "-m", "service.cli", "demo", *options]
        self.process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def assert_nothing_left(self) -> None:
        wait_until(lambda: not marked(self.mark), lambda: f"still there: {marked(self.mark)}")
        assert list(self.temp.iterdir()) == []

    def clear_up(self) -> None:
        kill_marked(self.mark)
        self.process.communicate()
        shutil.rmtree(self.temp)


@pytest.fixture
def demo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Demo]:
    demo = Demo(tmp_path, *request.param)
    yield demo
    demo.clear_up()


@pytest.mark.parametrize("demo", [["--json"]], indirect=True)
def test_the_demo_finds_the_wrong_labels(demo: Demo) -> None:
    out, err = demo.process.communicate()
    assert demo.process.returncode == 0, err
    demo.assert_nothing_left()
    report = json.loads(out)
    ivon, sgd = report["jobs"]
    assert [job["state"] for job in (ivon, sgd)] == ["SUCCEEDED", "SUCCEEDED"]
    for job in (ivon, sgd):
        assert job["test_accuracy"] > 0.8
        assert job["suspect_precision"] > 0.8, "by chance it would be 0.3"
        assert len(job["suspects"]) == 10
        assert job["mlflow"].startswith("http://127.0.0.1:")
    assert set(ivon["epsilon"]) == {"exact", "linearised"}
    assert sgd["epsilon"] == {}


@pytest.mark.parametrize("demo", [[]], indirect=True)
def test_ctrl_c_while_a_job_trains_leaves_nothing(demo: Demo) -> None:
    assert demo.process.stdout is not None
    said = ""
    while "RUNNING" not in said:
        said = demo.process.stdout.readline()
        assert said, "the demo ended too early"
    demo.process.send_signal(signal.SIGINT)
    demo.process.communicate(timeout=90)
    assert demo.process.returncode == 130
    demo.assert_nothing_left()
