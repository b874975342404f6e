"""An attempt on a real Ray of its own: two ranks, one of which is killed, and a job that cannot succeed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.training import context_for, digits_spec, figures, noisy_digits
from trainer.failure import read_failure
from trainer.output_log import driver_log, rank_log
from trainer.run_schema import ATTEMPT_FILE, AttemptResult

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@contextmanager
def driver(run_dir: Path) -> Iterator["subprocess.Popen[str]"]:
    """The driver with a Ray cluster of its own; none of it is left behind."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-m", "trainer.ray_entry", str(run_dir)],
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
        start_new_session=True,
    ) as process:
        family = psutil.Process(process.pid)
        try:
            yield process
        finally:
            members = family.children(recursive=True) if family.is_running() else []
            process.terminate()
            _, alive = psutil.wait_procs(members, timeout=20)
            for member in alive:
                member.kill()


def prepare(run_dir: Path, manifest: Path, **changes: object) -> None:
    spec = digits_spec(manifest, resources={"num_workers": 2, "cpus_per_worker": 1}, **changes)
    run_dir.mkdir()
    (run_dir / ATTEMPT_FILE).write_text(context_for(spec, run_dir).model_dump_json())


def finished_epochs(run_dir: Path) -> list[int]:
    if not (run_dir / "journal.jsonl").exists():
        return []
    return [epoch for _, epoch, metrics in figures(run_dir) if "train/accuracy" in metrics]


def ranks_of(driver_pid: int) -> list[psutil.Process]:
    def is_rank(process: psutil.Process) -> bool:
        try:
            return "ray::Rank" in " ".join(process.cmdline())
        except psutil.Error:
            return False

    return [process for process in psutil.Process(driver_pid).children(recursive=True) if is_rank(process)]


def kill_last_rank_after(num_epochs: int, process: "subprocess.Popen[str]", run_dir: Path) -> int:
    """Kill the rank of the highest process id once so many epochs are done; that id."""
    deadline_s = time.monotonic() + 200
    while len(finished_epochs(run_dir)) < num_epochs:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    victim = ranks_of(process.pid)[-1]
    victim.send_signal(signal.SIGKILL)
    return victim.pid


def test_killed_rank_is_started_again_and_each_epoch_stands_once(tmp_path: Path) -> None:
    num_epochs = 25
    run_dir = tmp_path / "run"
    prepare(
        run_dir,
        noisy_digits(tmp_path / "digits"),
        schedule={"epochs": num_epochs},
        label_noise={"num_examples": 64, "num_mc_samples": 2},
    )
    with driver(run_dir) as process:
        kill_last_rank_after(2, process, run_dir)
        _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    result = AttemptResult.model_validate_json((run_dir / "result.json").read_bytes())
    assert (result.outcome, result.num_epochs) == ("succeeded", num_epochs)
    assert finished_epochs(run_dir) == list(range(1, num_epochs + 1))
    assert read_failure(run_dir) is None, "what was overcome is no failure"
    for rank in range(2):
        log = rank_log(run_dir, rank).read_text()
        assert log.count(f"job job-1, attempt 1, rank {rank} of 2 on ") == 2, "each start writes a line"
        assert f"epoch {num_epochs} is done: " in log
    assert "attempt 1, driver on " in driver_log(run_dir).read_text()


def test_lost_rank_is_the_reason(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    prepare(
        run_dir,
        noisy_digits(tmp_path / "digits"),
        schedule={"epochs": 1000},
        label_noise={"num_examples": 64, "num_mc_samples": 2},
        fault_tolerance={"max_failures": 0},
    )
    with driver(run_dir) as process:
        pid = kill_last_rank_after(1, process, run_dir)
        _, told = process.communicate(timeout=200)
    assert process.returncode == 1, told
    failure = read_failure(run_dir)
    assert failure is not None
    assert (failure.reason, failure.is_final) == ("worker_lost", False)
    assert failure.rank is not None
    assert f"process {pid} ===" in rank_log(run_dir, failure.rank).read_text(), (
        "the one that died, not one that lost it"
    )
    assert failure.message.startswith(f"rank {failure.rank} died: ")


def test_hopeless_job_ends_with_its_reason(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    prepare(run_dir, noisy_digits(tmp_path / "digits"), method={"kind": "sgd", "lr": 1e30})
    with driver(run_dir) as process:
        _, told = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "method.lr = 1e+30" in told.strip().splitlines()[-1]
    assert "Traceback" in told
    assert not (run_dir / "result.json").exists()
    failure = read_failure(run_dir)
    assert failure is not None
    assert (failure.reason, failure.is_final) == ("non_finite_loss", True)
    assert "DivergedError" in failure.traceback.splitlines()[-1]
    log = rank_log(run_dir, failure.rank or 0).read_text()
    assert failure.traceback in log
    assert log.count(" of 2 on ") == 1, "it was not started again"
