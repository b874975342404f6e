"""Parameters and moves that IVON's kernels are tried on: the same for the same arguments, on any device."""

import math

import torch

from trainer.optim.factor import Factor
from trainer.optim.ivon_rules import Rule
from trainer.optim.kernels import Draw, Move
from trainer.optim.noise import DrawKey, Stream

DRAW = Draw(DrawKey(seed=7, stream=Stream.TRAINING, step=3, sample=1), sign=-1.0)
RULE = Rule(
    lr=0.1,
    beta1=0.9,
    beta2=0.999,
    weight_decay=1e-3,
    clip_radius=math.inf,
    debias=True,
    hess_approx="price",
    fixed_hessian=False,
)
RULES = [
    {},
    {"hess_approx": "gradsq"},
    {"fixed_hessian": True},
    {"clip_radius": 0.05},
    {"debias": False},
    {"beta2": 0.99999, "weight_decay": 0.0},
]
"""What differs from RULE."""


def factors(shapes, device="cpu"):
    """A parameter of each shape, those of four dimensions channels_last, each with its own λ."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index, shape in enumerate(shapes):
        parameter = torch.randn(shape, generator=generator)
        if parameter.dim() == 4:
            parameter = parameter.to(memory_format=torch.channels_last)
        hess = torch.empty_like(parameter).copy_(0.1 + torch.rand(shape, generator=generator))
        made.append(Factor(parameter.to(device), index, hess.to(device), ess=1e4 + index, weight_decay=2e-3))
    return made


def moves(shapes, device="cpu", *, with_estimates=False):
    """A move of each factor; gradients and estimates are in torch's own layout."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for factor in factors(shapes, device):
        like = factor.parameter
        normal = [torch.randn(like.shape, generator=generator).to(device) for _ in range(3)]
        momentum = torch.empty_like(like).copy_(0.1 * normal[0])
        step = torch.tensor(1.0 + factor.index, dtype=torch.float64, device=device)
        estimate = normal[2] if with_estimates else None
        made.append(Move(factor, momentum, step, grad=0.1 * normal[1], estimate=estimate))
    return made


def assert_close(ours, theirs):
    """Equal to rounding, and laid out alike."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.stride() == b.stride()
        assert torch.allclose(a.cpu(), b.cpu(), rtol=2e-6, atol=1e-6)


def assert_moved_alike(ours, theirs, before, *, hessian_stays):
    """All that an update changes. The Hessian moves little: its change counts, so that a wrong 1-β₂ is seen."""
    assert_close([m.factor.parameter for m in ours], [m.factor.parameter for m in theirs])
    assert_close([m.momentum for m in ours], [m.momentum for m in theirs])
    for a, b, old in zip(ours, theirs, before, strict=True):
        hess = old.factor.hess.cpu()
        change, expected = a.factor.hess.cpu() - hess, b.factor.hess.cpu() - hess
        assert (change - expected).norm() <= 1e-3 * expected.norm() + 1e-7 * hess.norm()
        assert bool(expected.norm() == 0) == hessian_stays


def assert_unchanged(ours, before):
    """Nothing that an update could change has changed."""
    for a, b in zip(ours, before, strict=True):
        assert torch.equal(a.factor.parameter, b.factor.parameter)
        assert torch.equal(a.factor.hess, b.factor.hess)
        assert torch.equal(a.momentum, b.momentum)
