"""python -m trainer: what it says, and its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.training import damage, digits_spec, noisy_digits

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def call(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error::DeprecationWarning:trainer", "-m", "trainer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=ENVIRONMENT, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    noisy_digits(folder / "digits")
    return folder


def test_says_how_many_examples_were_skipped(tmp_path: Path) -> None:
    damage(noisy_digits(tmp_path / "digits"), "train", 3)
    done = call(write_job(tmp_path / "job.yaml", schedule={"epochs": 1}), "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == [
        "3 examples could not be read and were skipped: run/quarantine.jsonl lists them"
    ]


def write_job(path: Path, **changes: object) -> str:
    spec = digits_spec(Path("digits/manifest.json"), **changes).model_dump(mode="json")
    path.write_text(yaml.safe_dump(spec))
    return path.name


def test_help_teaches(tmp_path: Path) -> None:
    done = call("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("torchrun", "--resume", "data/digits/manifest.json", "exit status"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: job\ndata: {manifest: m}\nmethod: {kind: sgd, lr: 0}\n", "method.lr = 0: must be greater than 0"),
        ("name: job\ndata: {manifest: absent.json}\n", "absent.json"),
        ("name: [\n", "is not YAML"),
    ],
)
def test_bad_job_is_one_line_and_status_2(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    done = call("job.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_trains_resumes_and_guards_what_is_there(folder: Path) -> None:
    job = write_job(folder / "short.yaml", schedule={"epochs": 1, "decay": "step"})
    done = call(job, "--run-dir", "first", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "succeeded after 1 epoch, 21 steps: first\n")
    assert "epoch 1 done: train/loss" in done.stderr
    result = json.loads((folder / "first/result.json").read_text())
    assert result["outcome"] == "succeeded"
    assert result["job_id"].startswith("digits-"), "trainings of one name are told apart"

    again = call(job, "--run-dir", "first", cwd=folder)
    assert again.returncode == 2
    assert "holds a run already; give another folder, or --resume" in again.stderr

    longer = write_job(folder / "longer.yaml", schedule={"epochs": 2, "decay": "step"})
    more = call(longer, "--run-dir", "first", "--resume", cwd=folder)
    assert (more.returncode, more.stdout) == (0, "succeeded after 2 epochs, 42 steps: first\n")
    assert json.loads((folder / "first/result.json").read_text())["job_id"] == result["job_id"]
    assert "resuming after epoch 1" in more.stderr
    assert "epoch 1 done" not in more.stderr


def test_run_folder_that_cannot_be_is_one_line(folder: Path) -> None:
    job = write_job(folder / "job.yaml")
    done = call(job, "--run-dir", "job.yaml/run", cwd=folder)
    assert done.returncode == 2
    assert done.stderr == "--run-dir = 'job.yaml/run': cannot be written: Not a directory\n"


def test_gpu_that_is_not_there_is_said(folder: Path) -> None:
    job = write_job(folder / "gpu.yaml", resources={"gpus_per_worker": 1})
    command = [sys.executable, "-m", "trainer", job, "--run-dir", "gpu"]
    hidden = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=hidden, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip() == "resources.gpus_per_worker = 1: no GPU is visible here; must be 0"


def test_interrupt_stops_after_the_step(folder: Path) -> None:
    job = write_job(folder / "long.yaml", schedule={"epochs": 500})
    with subprocess.Popen(
        [sys.executable, "-m", "trainer", job, "--run-dir", "long"],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline_s = time.monotonic() + 100
            while not (folder / "long/evaluation/epoch_0001.json").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode == 0
    assert out.startswith("stopped after ")
    assert json.loads((folder / "long/result.json").read_text())["outcome"] == "stopped"
