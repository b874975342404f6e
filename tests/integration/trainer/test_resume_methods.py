"""Every method goes on in a fresh process as if it had not been cut off: bit for bit on a CPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.trainer import second_half
from tests.methods import METHODS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each method trained in one go, and in two halves of which one child process does all the second ones."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("methods")
    for name, method in METHODS.items():
        half = second_half.learner_for(method, seed=1)
        second_half.train(method, half, 0, second_half.NUM_STEPS // 2)
        content = {"method": method.model_dump_json(), "state": second_half.state_of(half)}
        torch.save(content, folder / f"{name}.half.pt")
        whole = second_half.learner_for(method, seed=1)
        second_half.train(method, whole, 0, second_half.NUM_STEPS)
        torch.save(second_half.state_of(whole), folder / f"{name}.whole.pt")
    command = [sys.executable, "-W", "error", second_half.__file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, timeout=240)
    return folder


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Tensors and plain values by where they stand."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {at: leaf for key, inner in items for at, leaf in leaves(inner, f"{path}/{key}").items()}
    return {path: value}


@pytest.mark.parametrize("name", METHODS)
def test_two_halves_are_a_whole(folder: Path, name: str) -> None:
    half, whole, resumed = (
        leaves(torch.load(folder / f"{name}.{part}.pt", weights_only=True)) for part in ("half", "whole", "end")
    )
    assert whole.keys() == resumed.keys()
    for path, expected in whole.items():
        if isinstance(expected, torch.Tensor):
            assert torch.equal(resumed[path], expected), path
        else:
            assert resumed[path] == expected, path
    weight = "/model/0.weight"
    assert not torch.equal(whole[weight], half["/state" + weight])
    assert torch.isfinite(whole[weight]).all()
