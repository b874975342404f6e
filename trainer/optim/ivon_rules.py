"""IVON's update rules (Shen et al. 2024, Alg. 1) as pure functions of tensors. `ivon.py` says how they fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

HessApprox = Literal["price", "gradsq"]
"""How a sample estimates the diagonal Hessian."""
LARGEST = 1e12
"""A step with a larger gradient or estimate is skipped like one with NaN: `next_hessian` could overflow float32."""


@dataclass(frozen=True)
class Rule:
    """Constants of a step, for one group of parameters."""

    lr: float
    """Learning rate, with the factor h₀+δ if the rate is rescaled."""
    beta1: float
    beta2: float
    weight_decay: float
    clip_radius: float
    debias: bool
    """Divide the momentum by 1-β₁ᵗ."""
    hess_approx: HessApprox
    fixed_hessian: bool
    """Leave the Hessian as it is."""


def check(options: Mapping[str, float]) -> None:
    """Refuse hyperparameters that have no meaning, naming the field, its value and what is allowed."""
    allowed = {
        "lr": (options["lr"] >= 0, "at least 0"),
        "ess": (options["ess"] > 0, "above 0"),
        "hess_init": (options["hess_init"] > 0, "above 0"),
        "beta1": (0 <= options["beta1"] < 1, "in [0, 1)"),
        "beta2": (0 <= options["beta2"] <= 1, "in [0, 1]"),
        "weight_decay": (options["weight_decay"] >= 0, "at least 0"),
        "clip_radius": (options["clip_radius"] > 0, "above 0"),
    }
    for name, (holds, range_) in allowed.items():
        if not holds:
            raise ValueError(f"{name} {options[name]} must be {range_}")


def standard_deviation(hess: Tensor, ess: float, weight_decay: float) -> Tensor:
    """σ = 1/√(λ(h+δ)): λ effective sample size, h diagonal Hessian, δ weight decay."""
    return (ess * (hess + weight_decay)).rsqrt()


def price(noise: Tensor, grad: Tensor, sigma: Tensor) -> Tensor:
    """f = e⊙ĝ/σ, e ~ N(0, I): an unbiased estimate of the diagonal Hessian by reparameterisation ("price")."""
    return noise * grad / sigma


def squared_gradient(grad: Tensor, ess: float) -> Tensor:
    """f = λĝ²: the squared gradient as an estimate of the Hessian, never negative."""
    return ess * grad.square()


def largest_squarable_gradient(ess: float) -> float:
    """The gradient element whose `squared_gradient` is LARGEST."""
    return min(LARGEST, math.sqrt(LARGEST / ess))


def next_momentum(momentum: Tensor, grad: Tensor, beta1: float) -> Tensor:
    """g ← β₁g + (1-β₁)ḡ."""
    return torch.lerp(momentum, grad, 1 - beta1)


def next_hessian(hess: Tensor, estimate: Tensor, weight_decay: float, beta2: float) -> Tensor:
    """h ← β₂h + (1-β₂)f + ½(1-β₂)²(h-f)²/(h+δ). The last term keeps h+δ at no less than half its old value."""
    change = (1 - beta2) * (estimate - hess)
    return torch.addcdiv(hess + change, change.square(), hess + weight_decay, value=0.5)


def next_mean(mean: Tensor, momentum: Tensor, hess: Tensor, debias: Tensor | float, rule: Rule) -> Tensor:
    """m ← m - lr·clip((g/debias + δm)/(h+δ), ±ξ), with the new g and h; debias is 1-β₁ᵗ."""
    slope = torch.add(momentum / debias, mean, alpha=rule.weight_decay)
    direction = slope / (hess + rule.weight_decay)
    if rule.clip_radius < math.inf:
        direction = direction.clamp(-rule.clip_radius, rule.clip_radius)
    return torch.sub(mean, direction, alpha=rule.lr)
