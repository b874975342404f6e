"""Label noise that steps tell, over gloo: what ranks add up is what one process finds with the whole batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.training_noise_one_rank import NUM_TRAIN, TRACKED

WORKER = Path(__file__).with_name("training_noise_one_rank.py")
ROOT = Path(__file__).parents[2]


def told(folder: Path, world_size: int) -> dict[str, torch.Tensor]:
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(WORKER)]
    processes = [
        subprocess.Popen([*command, str(rank), str(world_size), str(folder)], env=environment)
        for rank in range(world_size)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return torch.load(folder / "noise.pt", weights_only=True)


@pytest.mark.slow
def test_two_ranks_find_what_one_does(tmp_path: Path) -> None:
    one, two = told(tmp_path / "one", 1), told(tmp_path / "two", 2)
    counts, sums = one["table"][:, :-1], one["table"][:, -1]
    assert counts.sum() == two["table"][:, :-1].sum() == NUM_TRAIN
    assert (two["table"][:, :-1] - counts).abs().sum() <= 2  # rounding may carry one example over an edge
    torch.testing.assert_close(two["table"][:, -1], sums)
    assert len(one["tracked"]) == len(TRACKED)
    torch.testing.assert_close(two["tracked"], one["tracked"])
    assert (one["tracked"] > 1e-3).all()
