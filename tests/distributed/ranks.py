"""Groups of processes for tests of what several ranks do together."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def run_ranks(worker: str, world_size: int, folder: Path) -> list[Any]:
    """Run `worker RANK WORLD_SIZE FOLDER` once for each rank; what each saved as FOLDER/rank<RANK>.pt."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name(worker))]
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
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]
