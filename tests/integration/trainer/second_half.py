"""Training of every method on a small network with BatchNorm, from given random batches; see test_resume_methods.

Run as `second_half.py FOLDER`, it goes on from each checkpoint in FOLDER as a fresh process does, and saves what comes
out.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from trainer.ddp import without_compiler
from trainer.method_spec import MethodSpec
from trainer.optim import build_optimizer
from trainer.steps import Learner, step_for
from trainer.target_spec import HardTarget
from trainer.targets import build_target

NUM_STEPS = 14
"""Of the whole training; the first half ends within a cycle of LookSAM."""
WEIGHTS_B = torch.full((12,), 1 / 12)


def learner_for(method: MethodSpec, seed: int) -> Learner:
    """A learner whose weights and noise come from `seed`."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)]
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    with without_compiler():
        optimizer = build_optimizer(method, model, num_examples=100, seed=seed)
    return Learner(model, optimizer, build_target(HardTarget(), 5), nullcontext)


def train(method: MethodSpec, learner: Learner, first: int, last: int) -> None:
    """Take the steps from `first` up to, but not with, `last`, under a falling learning rate."""
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        images_BCHW = torch.randn(12, 2, 6, 6, generator=generator)
        labels_B = torch.randint(5, (12,), generator=generator)
        for group in learner.optimizer.param_groups:
            group["lr"] = method.lr * (1 - number / NUM_STEPS)
        step_for(method)(learner, images_BCHW, labels_B, WEIGHTS_B)


def state_of(learner: Learner) -> dict[str, Any]:
    """What a checkpoint holds of it."""
    return {"model": learner.model.state_dict(), "optimizer": learner.optimizer.state_dict()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for path in sorted(folder.glob("*.half.pt")):
        saved = torch.load(path, weights_only=True)
        method = TypeAdapter(MethodSpec).validate_json(saved["method"])
        learner = learner_for(method, seed=99)  # all that counts comes from the checkpoint
        learner.model.load_state_dict(saved["state"]["model"])
        learner.optimizer.load_state_dict(saved["state"]["optimizer"])
        train(method, learner, NUM_STEPS // 2, NUM_STEPS)
        torch.save(state_of(learner), path.with_name(path.name.replace(".half.", ".end.")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
