"""The label that the loss sees: per-example losses of a target, and what a target learns while training.

Formulas are pure functions without reduction; a Target is what the loop works with. A step calls the target as often as
its method needs (SAM twice, IVON for each MC sample); the loop then shows it the step's predictions once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.ranks import Ranks
from trainer.target_spec import ACLSTarget, EntropyTarget, HardTarget, OnlineTarget, SmoothedTarget, TargetSpec

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


class Target(ABC):
    """The loss of each example, and what the target learns from predictions."""

    @abstractmethod
    def __call__(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """loss_B in nats, at least float32; changes nothing."""

    @abstractmethod
    def observe(self, logits_BC: Tensor, labels_B: Tensor, valid_B: Tensor) -> None:
        """Take in a step's detached predictions, once; waits for no device."""

    @abstractmethod
    def finish_epoch(self) -> None:
        """Turn what all ranks observed into the next epoch's target. Called by all ranks."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What the next loss and the next epoch depend on, of all ranks. Called by all ranks at the same step."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the saved target stood; ValueError if it was of another kind."""


class StatelessTarget(Target):
    """A loss that depends on prediction and label alone: there is nothing to learn and nothing to keep."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._loss = loss

    def __call__(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """loss_B in nats."""
        return self._loss(logits_BC, labels_B)

    def observe(self, logits_BC: Tensor, labels_B: Tensor, valid_B: Tensor) -> None:
        """Nothing."""

    def finish_epoch(self) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing, unless the state is that of a target which has one."""
        if state:
            raise ValueError("target.kind was 'online' when this run began, and is not now")


class OnlineLabelSmoothing(Target):
    """Online label smoothing (Zhang et al. 2021): soft labels from the epoch before, sums for the next, on the device.

    Row y of a matrix here belongs to class y; it is the paper's column, transposed so that a label picks a row.
    """

    def __init__(self, initial_CC: Tensor, hard_weight: float, ranks: Ranks) -> None:
        self.soft_CC = initial_CC.to(ranks.device)
        self._hard_weight = hard_weight
        self._ranks = ranks
        self._sums_CC = torch.zeros_like(self.soft_CC)

    def __call__(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """loss_B in nats."""
        return online_loss(logits_BC, labels_B, self.soft_CC, self._hard_weight)

    def observe(self, logits_BC: Tensor, labels_B: Tensor, valid_B: Tensor) -> None:
        """Add the predictions that agree with the given label."""
        self._sums_CC += sums_of_agreeing(logits_BC, labels_B, valid_B)

    def finish_epoch(self) -> None:
        """Take the mean of what all ranks added as the next soft labels."""
        self.soft_CC = next_soft_labels(self.soft_CC, self._ranks.sum_(self._sums_CC))
        self._sums_CC.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Soft labels, and the sums under way over all ranks.

        The sums move to rank 0, so that a run that went on from here and one that was taken up again, by however many
        ranks, add the same floats in the same order.
        """
        self._ranks.sum_(self._sums_CC)
        state = {"soft_CC": self.soft_CC.cpu().clone(), "sums_CC": self._sums_CC.cpu().clone()}
        self._leave_to_main()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the saved target stood."""
        if not state:
            raise ValueError("target.kind is 'online' now, and was not when this run began")
        self.soft_CC.copy_(state["soft_CC"])
        self._sums_CC.copy_(state["sums_CC"])
        self._leave_to_main()

    def _leave_to_main(self) -> None:
        if not self._ranks.is_main:
            self._sums_CC.zero_()


def build_target(spec: TargetSpec, num_classes: int, ranks: Ranks = ALONE) -> Target:
    """The target of a job with `num_classes` classes, whose examples `ranks` share."""
    if num_classes < 2:
        raise ValueError(f"num_classes {num_classes} must be at least 2")
    match spec:
        case HardTarget():
            return StatelessTarget(hard_loss)
        case SmoothedTarget(rate=rate):
            return StatelessTarget(partial(smoothed_loss, rate=rate))
        case OnlineTarget(hard_weight=hard_weight, initial_rate=rate):
            return OnlineLabelSmoothing(smoothed_labels(num_classes, rate), hard_weight, ranks)
        case ACLSTarget(lambda1=lambda1, lambda2=lambda2, margin=margin):
            return StatelessTarget(partial(acls_loss, lambda1=lambda1, lambda2=lambda2, margin=margin))
        case EntropyTarget():
            return StatelessTarget(entropy_loss)
        case _:
            assert_never(spec)


def hard_loss(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """-log p[y], of shape (B,)."""
    return F.cross_entropy(_at_least_float32(logits_BC), labels_B, reduction="none")


def smoothed_loss(logits_BC: Tensor, labels_B: Tensor, rate: float | Tensor) -> Tensor:
    """-Σ_k y'_k log p_k with y' = (1-α)y + α/K (Szegedy et al. 2016), of shape (B,); α is `rate`, one or (B,)."""
    log_p_BC = F.log_softmax(_at_least_float32(logits_BC), dim=1)
    given_B = log_p_BC.gather(1, labels_B[:, None])[:, 0]
    return -(1 - rate) * given_B - rate * log_p_BC.mean(dim=1)


def entropy_loss(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Label smoothing at each example's own rate, of shape (B,) (Lee et al. 2022). The rate passes no gradient."""
    return smoothed_loss(logits_BC, labels_B, entropy_rates(logits_BC.detach()))


def entropy_rates(logits_BC: Tensor) -> Tensor:
    """α = 1 - H(p)/log K, of shape (B,): 0 for a uniform prediction, 1 for a certain one (Lee et al. 2022)."""
    log_p_BC = F.log_softmax(_at_least_float32(logits_BC), dim=1)
    entropy_B = -(log_p_BC.exp() * log_p_BC).sum(dim=1)
    return (1 - entropy_B / math.log(logits_BC.shape[1])).clamp(0, 1)  # rounding may leave [0, 1]


def acls_loss(logits_BC: Tensor, labels_B: Tensor, lambda1: float, lambda2: float, margin: float) -> Tensor:
    """-log p[y] + λ₁ relu(z_ŷ - M)² + λ₂ mean_{k≠ŷ} relu(sg(z_ŷ) - z_k - M)², of shape (B,) (Park et al. 2023).

    z are the logits, ŷ the predicted class, M ≥ 0 the margin. sg stops the gradient: a large distance raises the small
    logit, it doesn't lower the large one. The sum may run over all k, since ŷ adds relu(-M)² = 0.
    """
    z_BC = _at_least_float32(logits_BC)
    z_max_B, _ = z_BC.max(dim=1)
    too_large_B = F.relu(z_max_B - margin).square()
    too_far_BC = F.relu(z_max_B.detach()[:, None] - z_BC - margin).square()
    too_far_B = too_far_BC.sum(dim=1) / (z_BC.shape[1] - 1)
    return F.cross_entropy(z_BC, labels_B, reduction="none") + lambda1 * too_large_B + lambda2 * too_far_B


def online_loss(logits_BC: Tensor, labels_B: Tensor, soft_CC: Tensor, hard_weight: float) -> Tensor:
    """-a log p[y] - (1-a) Σ_k S[y,k] log p_k, of shape (B,) (Zhang et al. 2021); a is `hard_weight`, S `soft_CC`."""
    log_p_BC = F.log_softmax(_at_least_float32(logits_BC), dim=1)
    given_B = log_p_BC.gather(1, labels_B[:, None])[:, 0]
    soft_BC = soft_CC[labels_B].to(log_p_BC.dtype)
    return -hard_weight * given_B - (1 - hard_weight) * (soft_BC * log_p_BC).sum(dim=1)


def smoothed_labels(num_classes: int, rate: float) -> Tensor:
    """Row y is (1-α)y + α/K, float64; α is `rate`."""
    return (1 - rate) * torch.eye(num_classes, dtype=torch.float64) + rate / num_classes


def sums_of_agreeing(logits_BC: Tensor, labels_B: Tensor, valid_B: Tensor) -> Tensor:
    """Row y is Σ p over the valid examples that are labelled y and predicted y; shape (C, C).

    A prediction that isn't finite (a step that the optimizer skips) counts as wrong. A product with the one-hot labels
    rather than index_add_, which adds in no fixed order on a GPU.
    """
    p_BC = _at_least_float32(logits_BC).softmax(dim=1)
    classes_C = torch.arange(p_BC.shape[1], device=p_BC.device)
    agrees_B = valid_B & (p_BC.argmax(dim=1) == labels_B) & p_BC.isfinite().all(dim=1)
    one_hot_BC = (labels_B[:, None] == classes_C).to(p_BC.dtype)
    return one_hot_BC.T @ torch.where(agrees_B[:, None], p_BC, 0)


def next_soft_labels(soft_CC: Tensor, sums_CC: Tensor) -> Tensor:
    """Rows of `sums_CC`, made to sum to 1; a class that was never predicted right keeps its row of `soft_CC`."""
    totals_C1 = sums_CC.sum(dim=1, keepdim=True)
    return torch.where(totals_C1 > 0, sums_CC / totals_C1, soft_CC)


def _at_least_float32(logits_BC: Tensor) -> Tensor:
    """Losses of bf16 logits would be rounded to two digits."""
    return logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
