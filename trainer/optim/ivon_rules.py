"""IVON's update rules (Shen et al. 2024, Alg. 1) as pure functions of tensors. `ivon.py` says how they fit together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

HessApprox = Literal["price", "gradsq"]
"""How a sample estimates the diagonal Hessian."""


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


def standard_deviation(hess: Tensor, ess: float, weight_decay: float) -> Tensor:
    """σ = 1/√(λ(h+δ)): λ effective sample size, h diagonal Hessian, δ weight decay."""
    return (ess * (hess + weight_decay)).rsqrt()


def price(noise: Tensor, grad: Tensor, sigma: Tensor) -> Tensor:
    """f = e⊙ĝ/σ, e ~ N(0, I): an unbiased estimate of the diagonal Hessian by reparameterisation ("price")."""
    return noise * grad / sigma


def squared_gradient(grad: Tensor, ess: float) -> Tensor:
    """f = λĝ²: the squared gradient as an estimate of the Hessian, never negative."""
    return ess * grad.square()


def next_momentum(momentum: Tensor, grad: Tensor, beta1: float) -> Tensor:
    """g ← β₁g + (1-β₁)ḡ."""
    return torch.lerp(momentum, grad, 1 - beta1)


def next_hessian(hess: Tensor, estimate: Tensor, weight_decay: float, beta2: float) -> Tensor:
    """h ← β₂h + (1-β₂)f + ½(1-β₂)²(h-f)²/(h+δ). The last term keeps h+δ at no less than half its old value."""
    change = (1 - beta2) * (estimate - hess)
    return hess + change + 0.5 * change.square() / (hess + weight_decay)


def next_mean(mean: Tensor, momentum: Tensor, hess: Tensor, debias: Tensor | float, rule: Rule) -> Tensor:
    """m ← m - lr·clip((g/debias + δm)/(h+δ), ±ξ), with the new g and h; debias is 1-β₁ᵗ."""
    direction = (momentum / debias + rule.weight_decay * mean) / (hess + rule.weight_decay)
    if rule.clip_radius < math.inf:
        direction = direction.clamp(-rule.clip_radius, rule.clip_radius)
    return mean - rule.lr * direction
