"""The same job under torchrun with two gloo ranks: the same files, and the same figures up to the order of sums."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.training import IVON, context_for, digits_spec, figures, noisy_digits, published, train_alone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run_under_torchrun(spec_file: Path, run_dir: Path, *more: str) -> None:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *launcher, "-m", "trainer", str(spec_file), "--run-dir", str(run_dir), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as launched:
        try:
            _, told = launched.communicate(timeout=120)
        finally:
            if launched.poll() is None:
                os.killpg(launched.pid, signal.SIGKILL)
    assert launched.returncode == 0, told


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    manifest = noisy_digits(tmp_path / "digits")
    # SGD at a small rate: IVON's noise would magnify the last bit of a sum within a few steps.
    spec = digits_spec(manifest, method={"kind": "sgd", "lr": 0.01}, label_noise={"num_examples": 151})
    spec_file = tmp_path / "job.yaml"
    spec_file.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    torch.set_num_threads(1)
    train_alone(context_for(spec, tmp_path / "one"))
    run_under_torchrun(spec_file, tmp_path / "two")

    assert published(tmp_path / "two") == published(tmp_path / "one")
    for (step, epoch, one), (step2, epoch2, two) in zip(
        figures(tmp_path / "one"), figures(tmp_path / "two"), strict=True
    ):
        assert (step, epoch, list(one)) == (step2, epoch2, list(two))
        assert two == pytest.approx(one, rel=2e-3, abs=2e-2)
    result = json.loads((tmp_path / "two/result.json").read_text())
    assert result["outcome"] == "succeeded"
    one, two = (pq.read_table(tmp_path / name / "examples/epoch_0002.parquet") for name in ("one", "two"))
    assert one["example_id"] == two["example_id"]
    assert one["num_records"] == two["num_records"]
    np.testing.assert_allclose(one["loss"].to_numpy(), two["loss"].to_numpy(), rtol=0.02, atol=0.02)


def test_two_ranks_measure_label_noise_as_one(tmp_path: Path) -> None:
    """IVON that hardly moves, so that both are held against the same posterior; what ranks measured has to add up."""
    spec = digits_spec(
        noisy_digits(tmp_path / "digits"),
        method={**IVON, "lr": 1e-9, "ess": 300, "num_mc_samples": 2, "antithetic": True},
        schedule={"epochs": 1, "max_steps_per_epoch": 2},
        label_noise={"num_examples": 151, "num_mc_samples": 4},
        evaluation={"num_mc_samples": 3},
    )
    spec_file = tmp_path / "job.yaml"
    spec_file.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    torch.set_num_threads(1)
    train_alone(context_for(spec, tmp_path / "one"))
    run_under_torchrun(spec_file, tmp_path / "two")

    ((_, _, one),), ((_, _, two),) = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert {"label_noise/exact/mean", "label_noise/linearised/mean", "label_noise/training/mean"} < set(one)
    assert two == pytest.approx(one, rel=1e-4)
    noise, of_two = (
        json.loads((tmp_path / name / "label_noise/epoch_0001.json").read_text()) for name in ("one", "two")
    )
    for estimator, num_examples in {"exact": 151, "linearised": 151, "training": 128}.items():
        histograms = noise["overall"][estimator], of_two["overall"][estimator]
        assert [histogram["num_examples"] for histogram in histograms] == [num_examples] * 2
    tables = [pq.read_table(tmp_path / name / "examples/epoch_0001.parquet") for name in ("one", "two")]
    for name in ("epsilon_exact", "epsilon_exact_given", "epsilon_linearised", "epsilon_training", "aum"):
        columns = [table[name].to_numpy() for table in tables]
        np.testing.assert_allclose(*columns, rtol=1e-3, atol=1e-6, err_msg=name)
        assert np.nanmax(np.abs(columns[0])) > 0.1, name


def test_resuming_two_ranks_is_exact(tmp_path: Path) -> None:
    manifest = noisy_digits(tmp_path / "digits")
    files = {}
    for epochs in (1, 2):
        # A constant rate: else the shorter job would have another schedule.
        spec = digits_spec(manifest, schedule={"epochs": epochs, "decay": "step"}, label_noise={"num_examples": 64})
        files[epochs] = tmp_path / f"{epochs}.yaml"
        files[epochs].write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    run_under_torchrun(files[2], tmp_path / "through")
    run_under_torchrun(files[1], tmp_path / "halves")
    run_under_torchrun(files[2], tmp_path / "halves", "--resume")
    last = [metrics for _, epoch, metrics in figures(tmp_path / "through") if epoch == 2]
    assert last == [metrics for _, epoch, metrics in figures(tmp_path / "halves") if epoch == 2]
    assert (tmp_path / "through/model.pt").read_bytes() == (tmp_path / "halves/model.pt").read_bytes()
