"""IVON under DDP over gloo: mean and Hessian are equal on all ranks, and those of one process with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.method_spec import IVONSpec

WORKER = Path(__file__).with_name("train_one_rank.py")
ROOT = Path(__file__).parents[2]
METHODS = {
    "one sample": IVONSpec(lr=0.1, beta2=0.9),
    "antithetic samples": IVONSpec(lr=0.1, beta2=0.9, num_mc_samples=4, antithetic=True),
}


def trained(folder: Path, method: IVONSpec, world_size: int) -> list[list[torch.Tensor]]:
    """Means, momenta and Hessians of each rank."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(WORKER)]
    processes = [
        subprocess.Popen([*command, str(rank), str(world_size), str(folder), method.model_dump_json()], env=environment)
        for rank in range(world_size)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_two_ranks_do_what_one_does(method, tmp_path):
    (alone,) = trained(tmp_path / "one", method, 1)
    first, second = trained(tmp_path / "two", method, 2)
    for a, b, expected in zip(first, second, alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, expected, rtol=1e-9, atol=1e-12)
