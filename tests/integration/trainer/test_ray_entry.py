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
            return "RayTrainWorker" in " ".join(process.cmdline())
        except psutil.Error:
            return False

    return [process for process in psutil.Process(driver_pid).children(recursive=True) if is_rank(process)]


def test_killed_rank_is_started_again_and_each_epoch_stands_once(tmp_path: Path) -> None:
    num_epochs = 25
    prepare(
        tmp_path / "run",
        noisy_digits(tmp_path / "digits"),
        schedule={"epochs": num_epochs},
        label_noise={"num_examples": 64, "num_mc_samples": 2},
    )
    with driver(tmp_path / "run") as process:
        deadline_s = time.monotonic() + 200
        while len(finished_epochs(tmp_path / "run")) < 2:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        victim = ranks_of(process.pid)[-1]
        victim.send_signal(signal.SIGKILL)
        _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    result = AttemptResult.model_validate_json((tmp_path / "run/result.json").read_bytes())
    assert (result.outcome, result.num_epochs) == ("succeeded", num_epochs)
    assert finished_epochs(tmp_path / "run") == list(range(1, num_epochs + 1))


def test_hopeless_job_ends_with_its_reason(tmp_path: Path) -> None:
    prepare(tmp_path / "run", noisy_digits(tmp_path / "digits"), method={"kind": "sgd", "lr": 1e30})
    with driver(tmp_path / "run") as process:
        _, told = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "method.lr = 1e+30" in told.strip().splitlines()[-1]
    assert "Traceback" in told
    assert not (tmp_path / "run/result.json").exists()
