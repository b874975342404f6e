"""IVON against the package `ivon-opt`, step for step, on the same noise."""

import ivon
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.optim.ivon import IVON

SETTINGS = {
    "defaults": ({}, 1),
    "fast Hessian": ({"beta2": 0.99, "hess_init": 0.1}, 1),
    "no weight decay": ({"weight_decay": 0.0}, 1),
    "several samples": ({"beta2": 0.999}, 4),
    "clipped": ({"clip_radius": 1e-2}, 1),
    "rate not rescaled": ({"rescale_lr": False, "hess_init": 0.5}, 1),
    "not debiased": ({"debias": False}, 1),
    "authors' CIFAR": ({"hess_init": 0.5, "weight_decay": 2e-4}, 1),
}


class RecordedNoise:
    """Keeps what ivon-opt draws, one flat vector a sample, and gives the same numbers to our parameters."""

    def __init__(self, monkeypatch, model, num_samples):
        self.drawn = []
        self._sizes = [p.numel() for p in model.parameters()]
        self._num_samples = num_samples
        draw = torch.randn

        def recording(*size, **options):
            self.drawn.append(draw(*size, **options))
            return self.drawn[-1]

        monkeypatch.setattr(ivon._ivon.torch, "randn", recording)

    def __call__(self, parameter, draw, index):
        flat = self.drawn[draw.step * self._num_samples + draw.sample]
        return flat.split(self._sizes)[index].view_as(parameter)


def conv_net(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).to(dtype)


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def both_after(steps, options, num_samples, dtype, monkeypatch):
    """(mean, Hessian) of ivon-opt and of ours, on a batch of 32 random pictures."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(32, 1, 8, 8, generator=generator).to(dtype)
    labels = torch.randint(10, (32,), generator=generator)
    theirs, ours = conv_net(dtype), conv_net(dtype)
    noise = RecordedNoise(monkeypatch, ours, num_samples)
    common = {"lr": 0.1, "ess": 1000, "mc_samples": num_samples, **options}
    reference = ivon.IVON(theirs.parameters(), **common)
    optimizer = IVON(ours.parameters(), noise=noise, **common)
    torch.manual_seed(2)
    for _ in range(steps):
        for model, it in ((theirs, reference), (ours, optimizer)):
            for _ in range(num_samples):
                it.zero_grad()
                with it.sampled_params(train=True):
                    F.cross_entropy(model(images), labels).backward()
            it.step()
    assert len(noise.drawn) == steps * num_samples
    hess = flat(optimizer.state[p]["hess"] for p in ours.parameters())
    return (flat(theirs.parameters()), reference.param_groups[0]["hess"].flatten()), (flat(ours.parameters()), hess)


@pytest.mark.parametrize(("options", "num_samples"), SETTINGS.values(), ids=SETTINGS.keys())
def test_fifty_steps_equal_ivon_opt_in_float32(options, num_samples, monkeypatch):
    (mean, hess), (our_mean, our_hess) = both_after(50, options, num_samples, torch.float32, monkeypatch)

    # Relative: to the largest element of the mean (single weights pass through zero); to each element of the Hessian.
    assert (our_mean - mean).abs().max() / mean.abs().max() < 1e-5
    assert ((our_hess - hess).abs() / hess).max() < 1e-5


def test_very_fast_hessian_equals_ivon_opt_in_float64(monkeypatch):
    """With β₂ = 0.9 the Hessian spans four decades, and float32's rounding grows with the steps: hence float64."""
    (mean, hess), (our_mean, our_hess) = both_after(50, {"beta2": 0.9}, 2, torch.float64, monkeypatch)

    assert hess.max() / hess.min() > 1e3
    assert (our_mean - mean).abs().max() / mean.abs().max() < 1e-9
    assert ((our_hess - hess).abs() / hess).max() < 1e-9
