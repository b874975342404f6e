"""What is imported before a job's first step: every module costs each process of each job its time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torch._dynamo", "torchvision", "matplotlib", "sklearn", "mlflow", "ray", "ray.train", "scipy"}

FIRST_STEP = """
import torch
import trainer.attempt
from pydantic import TypeAdapter
from trainer import ddp
from trainer.method_spec import MethodSpec
from trainer.model import build_model
from trainer.optim import build_optimizer
from trainer.spec import ModelSpec
from trainer.steps import Learner, step_for
from trainer.target_spec import HardTarget
from trainer.targets import build_target
import contextlib
network = build_model(ModelSpec(arch="small_cnn"), 10, seed=0)
method = TypeAdapter(MethodSpec).validate_python({"kind": "%s"})
with ddp.without_compiler():
    optimizer = build_optimizer(method, network, num_examples=100, seed=0)
learner = Learner(network, optimizer, build_target(HardTarget(), 10, None), contextlib.nullcontext)
step_for(method)(learner, torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), torch.ones(4))
"""


def heavy_after(code: str) -> set[str]:
    """The heavy modules that are there after some code has run in a process of its own."""
    tell = f"import json, sys; print(json.dumps([name for name in {sorted(HEAVY)} if name in sys.modules]))"
    ran = subprocess.run([sys.executable, "-c", code + "\n" + tell], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import trainer.ray_entry", set()),
        ("import trainer.ray_controller", {"ray", "ray.train"}),
        ("import trainer.ray_rank", {"ray", "ray.train"}),
        ("import trainer.attempt", {"torch"}),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str, expected: set[str]) -> None:
    assert heavy_after(code) == expected


@pytest.mark.parametrize("kind", ["sgd", "adamw", "ivon"])
def test_the_first_step_imports_no_compiler(kind: str) -> None:
    assert heavy_after(FIRST_STEP % kind) == {"torch"}
