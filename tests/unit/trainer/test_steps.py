"""A step of each method: what it computes, and that it trains."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.methods import METHODS
from trainer.method_spec import IVONSpec, SGDSpec
from trainer.optim import build_optimizer
from trainer.steps import Learner, step_for
from trainer.target_spec import HardTarget, SmoothedTarget
from trainer.targets import build_target

IMAGES_BCHW = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS_B = torch.arange(24) % 4


def learner_for(method, target=None, autocast=nullcontext):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = build_optimizer(method, model, num_examples=100, seed=0)
    return Learner(model, optimizer, build_target(target or HardTarget(), 4), autocast)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_method_learns_the_batch(method):
    learner, step = learner_for(method), step_for(method)
    weights_B = torch.full((24,), 1 / 24)
    losses = [step(learner, IMAGES_BCHW, LABELS_B, weights_B).loss.item() for _ in range(60)]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_padding_of_weight_zero_changes_nothing(method):
    """Neither what stands in the padding nor its label reaches the weights."""
    plain, padded = learner_for(method), learner_for(method)
    images_BCHW = torch.cat([IMAGES_BCHW, 100 * torch.ones(4, 1, 6, 6)])
    labels_B = torch.cat([LABELS_B, torch.zeros(4, dtype=torch.int64)])
    weights_B = torch.cat([torch.full((24,), 1 / 24), torch.zeros(4)])
    for _ in range(3):
        a = step_for(method)(plain, IMAGES_BCHW, LABELS_B, torch.full((24,), 1 / 24))
        b = step_for(method)(padded, images_BCHW, labels_B, weights_B)
    torch.testing.assert_close(a.loss, b.loss)
    torch.testing.assert_close(a.logits_BC, b.logits_BC[:24])


def test_sgd_step_is_torchs():
    learner = learner_for(SGDSpec(lr=0.1), SmoothedTarget(rate=0.2))
    twin = learner_for(SGDSpec(lr=0.1))
    output = step_for(SGDSpec())(learner, IMAGES_BCHW, LABELS_B, torch.full((24,), 1 / 24))
    loss = F.cross_entropy(twin.model(IMAGES_BCHW), LABELS_B, label_smoothing=0.2)
    loss.backward()
    twin.optimizer.step()
    torch.testing.assert_close(output.loss, loss.detach())
    for p, q in zip(learner.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_output_is_detached_and_means_over_samples_or_is_of_the_first_pass(method):
    learner = learner_for(method)
    seen = []
    learner.model.register_forward_hook(lambda _module, _inputs, logits_BC: seen.append(logits_BC.detach()))
    output = step_for(method)(learner, IMAGES_BCHW, LABELS_B, torch.full((24,), 1 / 24))
    samples = seen if method.kind == "ivon" else seen[:1]
    torch.testing.assert_close(output.logits_BC, torch.stack(samples).mean(0))
    losses = [F.cross_entropy(logits_BC, LABELS_B) for logits_BC in samples]
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    assert not output.loss.requires_grad
    assert not output.logits_BC.requires_grad


def test_forward_runs_in_the_learners_autocast():
    learner = learner_for(IVONSpec(num_mc_samples=2), autocast=partial(torch.autocast, "cpu", dtype=torch.bfloat16))
    output = step_for(IVONSpec())(learner, IMAGES_BCHW, LABELS_B, torch.full((24,), 1 / 24))
    assert output.logits_BC.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in learner.model.parameters())
