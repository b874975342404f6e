"""The label that the loss sees: per-example losses of a target, without reduction."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.target_spec import HardTarget, SmoothedTarget, TargetSpec

Target = Callable[[Tensor, Tensor], Tensor]
"""(logits_BC, labels_B) -> loss_B, in nats."""


def hard_loss(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """-log p[y], of shape (B,)."""
    return F.cross_entropy(_at_least_float32(logits_BC), labels_B, reduction="none")


def smoothed_loss(logits_BC: Tensor, labels_B: Tensor, rate: float) -> Tensor:
    """-Σ_k y'_k log p_k with y' = (1-α)y + α/K (Szegedy et al. 2016), of shape (B,); α is `rate`."""
    log_p_BC = F.log_softmax(_at_least_float32(logits_BC), dim=1)
    given_B = log_p_BC.gather(1, labels_B[:, None])[:, 0]
    return -(1 - rate) * given_B - rate * log_p_BC.mean(dim=1)


def build_target(spec: TargetSpec, num_classes: int) -> Target:
    """The loss of a target for `num_classes` classes."""
    if num_classes < 2:
        raise ValueError(f"num_classes {num_classes} must be at least 2")
    match spec:
        case HardTarget():
            return hard_loss
        case SmoothedTarget(rate=rate):
            return lambda logits_BC, labels_B: smoothed_loss(logits_BC, labels_B, rate)
        case _:
            assert_never(spec)


def _at_least_float32(logits_BC: Tensor) -> Tensor:
    """Losses of bf16 logits would be rounded to two digits."""
    return logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
