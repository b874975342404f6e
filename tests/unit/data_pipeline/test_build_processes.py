"""Building in several processes: the same bytes, and whatever dies, nothing hangs and no process is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.check import check
from data_pipeline.processes import _serve
from data_pipeline.sources.base import SourceExample
from data_pipeline.sources.mnist import Mnist

ONE, TWO, THREE = (BuildOptions(shard_size=4, num_processes=number) for number in (1, 2, 3))
SLOW_BUILD = """
import pathlib, sys, time
from data_pipeline.building.build import BuildOptions, build
from data_pipeline.sources.mnist import Mnist

class Slow(Mnist):
    def read(self, example):
        time.sleep(0.1)
        return super().read(example)

if __name__ == "__main__":
    build(Slow(sys.argv[1]), pathlib.Path(sys.argv[2]), BuildOptions(shard_size=4, num_processes=2), print)
"""


class Deadly(Mnist):
    """Kills the process that reads one of its pictures."""

    def read(self, example: SourceExample) -> bytes:
        if example.example_id == "train-00020":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(example)


class Odd(Mnist):
    """One of its pictures breaks the program that reads it."""

    def read(self, example: SourceExample) -> bytes:
        if example.example_id == "train-00020":
            raise ValueError("train-00020 is odd")
        return super().read(example)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_bytes_do_not_depend_on_the_number_of_processes(idx_folder, tmp_path):
    told: dict[str, list[int]] = {}
    result = build(
        Mnist(idx_folder),
        tmp_path / "three",
        THREE,
        lambda progress: told.setdefault(progress.split, []).append(progress.num_done),
    )
    assert result.is_new
    build(Mnist(idx_folder), tmp_path / "one", ONE)
    assert content_of(tmp_path / "three") == content_of(tmp_path / "one")
    assert {split: counts[-1] for split, counts in told.items()} == {"train": 40, "test": 12}
    assert all(counts == sorted(counts) for counts in told.values())


def test_a_process_that_is_killed_is_an_error_and_its_shard_is_built_later(idx_folder, tmp_path):
    with pytest.raises(ChildProcessError, match=r"process \d+ was killed by signal 9"):
        build(Deadly(idx_folder), tmp_path / "out", TWO)
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "out" / "manifest.json").exists()
    build(Mnist(idx_folder), tmp_path / "out", ONE)
    build(Mnist(idx_folder), tmp_path / "one", ONE)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "one")


@pytest.mark.parametrize("options", [ONE, TWO])
def test_an_error_in_a_process_is_raised_here(idx_folder, tmp_path, options):
    with pytest.raises(ValueError, match="train-00020 is odd"):
        build(Odd(idx_folder), tmp_path / "out", options)
    assert multiprocessing.active_children() == []


def test_processes_end_when_the_one_that_started_them_is_killed(idx_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SLOW_BUILD)
    command = [sys.executable, script, idx_folder, tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline()  # they are at work
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert check(build(Mnist(idx_folder), tmp_path / "out", ONE).manifest) == []


def num_starting(parent: int) -> int:
    """Processes of a build that are there, whether or not they are at work yet."""
    return sum("spawn_main" in " ".join(child.cmdline()) for child in psutil.Process(parent).children())


@pytest.mark.parametrize("moment", ["starting", "at work"])
def test_ctrl_c_ends_a_build_in_processes_with_one_line(tmp_path, moment):
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", "data", "build", "digits", str(tmp_path), "--shard-size", "1",
         "--processes", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as parent:  # fmt: skip
        while not (num_starting(parent.pid) if moment == "starting" else list(tmp_path.glob("train-*.tar"))):
            assert parent.poll() is None
            time.sleep(0.05)
        time.sleep(0.1)
        os.killpg(parent.pid, signal.SIGINT)
        _, errors = parent.communicate(timeout=60)
    assert errors == "stopped; the same command goes on from here\n"
    assert parent.returncode == 130


def test_a_process_that_is_left_in_the_middle_of_a_message_ends_quietly():
    ours, theirs = multiprocessing.Pipe()
    os.write(ours.fileno(), (100).to_bytes(4, "big") + b"not all")
    ours.close()
    _serve(theirs)
