"""Label noise ε of a batch: what the posterior over the weights adds to each label (arXiv 2502.07273).

exact       ε_i = softmax(f_m(x_i)) - E_q[softmax(f_θ(x_i))]                       (Eq. 16) second order in σ
linearised  ε_i = (diag p_i - p_i p_iᵀ) J_m(x_i) (σ⊙e), p_i = softmax(f_m(x_i))    (Eq. 20) first order in σ, zero mean

Both come from the same antithetic passes θ± = m ± σe: p(m) - mean((p₊+p₋)/2) estimates the first without its
first-order error, and (p₊-p₋)/2 is the second, for the draw e, up to O(σ³). Of the second, squares are averaged over
draws: E‖ε‖² is tr(J Σ Jᵀ) seen through the softmax; E‖ε‖ is nothing of the kind. ε says that an example is ambiguous:
it doesn't contain y.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.optim.ivon import IVON
from trainer.optim.noise import DrawKey, Stream
from trainer.optim.posterior import Posterior


@dataclass(frozen=True)
class NoiseEstimate:
    """What is known of a batch at the posterior."""

    logits_mean_BC: Tensor
    """Logits at the posterior mean, in the precision of the weights."""
    exact_BC: Tensor | None
    """ε of Eq. 16, float64; its components sum to zero. None if not asked for, or without a posterior."""
    linearised_sq_B: Tensor | None
    """Mean over draws of ‖ε‖₂² of Eq. 20, float64. None if not asked for, or without a posterior."""


def posterior_of(optimizer: Optimizer) -> Posterior | None:
    """The posterior that an optimizer learns; None for one that learns a point."""
    return optimizer.posterior() if isinstance(optimizer, IVON) else None


@torch.no_grad()
def estimate(
    model: nn.Module,
    posterior: Posterior | None,
    images_BCHW: Tensor,
    *,
    estimator: Literal["exact", "linearised", "both"],
    num_mc_samples: int,
    seed: int,
    epoch: int,
    microbatch: int = 256,
) -> NoiseEstimate:
    """Logits at the mean, and ε from `num_mc_samples`/2 antithetic pairs: num_mc_samples + 1 forward passes.

    `model` is the bare model, not its DDP wrapper: ranks needn't call this in step. It runs in eval mode and without
    autocast (differences of bf16 probabilities are noise), and is left as it was. The draws depend on (seed, epoch)
    only: all batches and ranks of an epoch see the same weights. Each draw samples every weight, so hand in many images
    at once; `microbatch` of them go through the model at a time.
    """
    if num_mc_samples < 2 or num_mc_samples % 2:
        raise ValueError(
            f"num_mc_samples {num_mc_samples} must be even and at least 2: samples come in antithetic pairs"
        )
    with _evaluating(model), torch.autocast(images_BCHW.device.type, enabled=False):
        logits_BC = _forward(model, images_BCHW, microbatch)
        if posterior is None:
            return NoiseEstimate(logits_BC, None, None)
        p_mean_BC = logits_BC.double().softmax(dim=1)
        exact_BC = torch.zeros_like(p_mean_BC)
        linearised_sq_B = torch.zeros_like(p_mean_BC[:, 0])
        num_pairs = num_mc_samples // 2
        for pair in range(num_pairs):
            draw = DrawKey(seed, Stream.LABEL_NOISE, epoch, pair)
            with posterior.perturbed(draw, +1.0):
                plus_BC = _forward(model, images_BCHW, microbatch).double().softmax(dim=1)
            with posterior.perturbed(draw, -1.0):
                minus_BC = _forward(model, images_BCHW, microbatch).double().softmax(dim=1)
            exact_BC += (p_mean_BC - (plus_BC + minus_BC) / 2) / num_pairs
            linearised_sq_B += ((plus_BC - minus_BC) / 2).square().sum(dim=1) / num_pairs
    return NoiseEstimate(
        logits_mean_BC=logits_BC,
        exact_BC=exact_BC if estimator in {"exact", "both"} else None,
        linearised_sq_B=linearised_sq_B if estimator in {"linearised", "both"} else None,
    )


def _forward(model: nn.Module, images_BCHW: Tensor, microbatch: int) -> Tensor:
    return torch.cat([model(part_BCHW) for part_BCHW in torch.split(images_BCHW, microbatch)])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
