"""Label noise ε of a batch: what the posterior over the weights adds to each label (arXiv 2502.07273).

exact       ε_i = softmax(f_m(x_i)) - E_q[softmax(f_θ(x_i))]                       (Eq. 16) second order in σ
linearised  ε_i = (diag p_i - p_i p_iᵀ) J_m(x_i) (σ⊙e), p_i = softmax(f_m(x_i))    (Eq. 20) first order in σ, zero mean

Each estimator takes (model, posterior, images, draws) and gives ε of shape (batch, classes):

exact               p(m) - mean p(θ) over plain draws, or over antithetic pairs θ± = m ± σe: these cancel the first
                    order, which is what a plain average mostly consists of
linearised_by_pair  (p₊ - p₋)/2 of one draw: Eq. 20 up to O(σ³), for two passes
linearised_by_jvp   Eq. 20 itself, by forward-mode differentiation along σ⊙e, for the time of four to eight

`estimate` makes both of them from the same passes, as recording does. Of the linearised one squares are averaged over
draws: E‖ε‖² is tr(J Σ Jᵀ) seen through the softmax; E‖ε‖ is nothing of the kind. ε says that an example is ambiguous:
it doesn't contain y.

Everywhere `model` is the bare model, not its DDP wrapper: ranks needn't call this in step. It runs in eval mode
(BatchNorm uses its running statistics, and all passes of a draw see the same input) and without autocast (differences
of bf16 probabilities are rounding), and is left as it was. Probabilities and ε are float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.optim import Optimizer

from trainer.optim.noise import DrawKey, Stream
from trainer.optim.posterior import Posterior

MICROBATCH = 256
"""Images that go through the model at a time. A draw samples every weight, so it should serve many images."""


@runtime_checkable
class LearnsPosterior(Protocol):
    """An optimizer that learns a posterior over the weights rather than a point."""

    def posterior(self) -> Posterior:
        """The posterior as it stands."""
        ...


def posterior_of(optimizer: Optimizer) -> Posterior | None:
    """The posterior that an optimizer learns; None for one that learns a point."""
    return optimizer.posterior() if isinstance(optimizer, LearnsPosterior) else None


# --------------------------------------------------------------------------------------------------------- estimators


def exact(
    model: nn.Module, posterior: Posterior, images_BCHW: Tensor, draws: Sequence[DrawKey], *, antithetic: bool = True
) -> Tensor:
    """ε_BC of Eq. 16, averaged over draws. A draw costs one pass at m + σe; antithetic, another one at m - σe."""
    with _measuring(model, images_BCHW):
        p_mean_BC = _probabilities(model, images_BCHW)
        total_BC = torch.zeros_like(p_mean_BC)
        for draw in draws:
            if antithetic:
                total_BC += mean_shift(p_mean_BC, *_pair(model, posterior, images_BCHW, draw))
            else:
                with posterior.perturbed(draw):
                    total_BC += p_mean_BC - _probabilities(model, images_BCHW)
    return total_BC / len(draws)


def linearised_by_pair(model: nn.Module, posterior: Posterior, images_BCHW: Tensor, draw: DrawKey) -> Tensor:
    """ε_BC of Eq. 20 for one draw e, up to O(σ³): half the difference of the predictions at m ± σe."""
    with _measuring(model, images_BCHW):
        return half_difference(*_pair(model, posterior, images_BCHW, draw))


def linearised_by_jvp(model: nn.Module, posterior: Posterior, images_BCHW: Tensor, draw: DrawKey) -> Tensor:
    """ε_BC of Eq. 20 for one draw e, as it is written: the Jacobian-vector product J_m(x)(σ⊙e), through the softmax."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    means = {names[factor.parameter]: factor.parameter.detach() for factor in posterior.factors}
    with _measuring(model, images_BCHW), _quiet_forward_mode():
        directions = {
            names[factor.parameter]: posterior.noise(factor.parameter, draw, factor.index) * factor.standard_deviation()
            for factor in posterior.factors
        }
        parts = [
            through_softmax(*_logits_and_tangent(model, part_BCHW, means, directions))
            for part_BCHW in torch.split(images_BCHW, MICROBATCH)
        ]
    return torch.cat(parts)


def mean_shift(p_mean_BC: Tensor, plus_BC: Tensor, minus_BC: Tensor) -> Tensor:
    """p(m) - (p₊ + p₋)/2: what one pair says of Eq. 16."""
    return p_mean_BC - (plus_BC + minus_BC) / 2


def half_difference(plus_BC: Tensor, minus_BC: Tensor) -> Tensor:
    """(p₊ - p₋)/2: Eq. 20 for the pair's draw."""
    return (plus_BC - minus_BC) / 2


def through_softmax(logits_BC: Tensor, tangent_BC: Tensor) -> Tensor:
    """(diag p - p pᵀ) v, p = softmax(logits), for the tangent v of the logits; float64."""
    p_BC = logits_BC.double().softmax(dim=1)
    tangent_BC = tangent_BC.double()
    return p_BC * (tangent_BC - (p_BC * tangent_BC).sum(dim=1, keepdim=True))


# -------------------------------------------------------------------------------------------------------- all together


@dataclass(frozen=True)
class EstimateOptions:
    """What is estimated, and from which draws: those of (seed, epoch), the same for all batches and ranks."""

    seed: int
    epoch: int
    num_mc_samples: int
    """Weight samples, in antithetic pairs: even. A jvp takes the direction of a pair."""
    estimator: Literal["exact", "linearised", "both"] = "both"
    linearised_by: Literal["antithetic", "jvp"] = "antithetic"

    def __post_init__(self) -> None:
        """Refuse samples that don't come in pairs."""
        if self.num_mc_samples < 2 or self.num_mc_samples % 2:
            raise ValueError(
                f"num_mc_samples {self.num_mc_samples} must be even and at least 2: samples come in antithetic pairs"
            )

    @property
    def draws(self) -> tuple[DrawKey, ...]:
        """A direction for each pair."""
        return tuple(DrawKey(self.seed, Stream.LABEL_NOISE, self.epoch, i) for i in range(self.num_mc_samples // 2))


@dataclass(frozen=True)
class NoiseEstimate:
    """What is known of a batch at the posterior."""

    logits_at_mean_BC: Tensor
    """Logits at the posterior mean, in the precision of the weights."""
    exact_BC: Tensor | None
    """ε of Eq. 16, float64; its components sum to zero. None if not asked for, or without a posterior."""
    linearised_sq_B: Tensor | None
    """Mean over draws of ‖ε‖₂² of Eq. 20, float64. None if not asked for, or without a posterior."""


def estimate(
    model: nn.Module,
    posterior: Posterior | None,
    images_BCHW: Tensor,
    options: EstimateOptions,
    before_draw: Callable[[], None] = lambda: None,
) -> NoiseEstimate:
    """Logits at the mean, and both ε from the same passes: `num_mc_samples` + 1, and those of the jvps.

    `before_draw` is called before each draw, and may raise to give up.
    """
    wants_exact, wants_linearised = options.estimator != "linearised", options.estimator != "exact"
    by_jvp = options.linearised_by == "jvp"
    with _measuring(model, images_BCHW):
        logits_BC = logits_of(model, images_BCHW)
        if posterior is None:
            return NoiseEstimate(logits_BC, None, None)
        p_mean_BC = logits_BC.double().softmax(dim=1)
        exact_BC = torch.zeros_like(p_mean_BC)
        linearised_sq_B = torch.zeros_like(p_mean_BC[:, 0])
        for draw in options.draws:
            before_draw()
            if wants_exact or not by_jvp:
                plus_BC, minus_BC = _pair(model, posterior, images_BCHW, draw)
                exact_BC += mean_shift(p_mean_BC, plus_BC, minus_BC)
            if by_jvp and wants_linearised:
                linearised_sq_B += linearised_by_jvp(model, posterior, images_BCHW, draw).square().sum(dim=1)
            elif wants_linearised:
                linearised_sq_B += half_difference(plus_BC, minus_BC).square().sum(dim=1)
    return NoiseEstimate(
        logits_at_mean_BC=logits_BC,
        exact_BC=exact_BC / len(options.draws) if wants_exact else None,
        linearised_sq_B=linearised_sq_B / len(options.draws) if wants_linearised else None,
    )


# ------------------------------------------------------------------------------------------------------------- passes


def logits_of(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """The model's outputs, MICROBATCH images at a time."""
    return torch.cat([model(part_BCHW) for part_BCHW in torch.split(images_BCHW, MICROBATCH)])


def _probabilities(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    return logits_of(model, images_BCHW).double().softmax(dim=1)


def _pair(model: nn.Module, posterior: Posterior, images_BCHW: Tensor, draw: DrawKey) -> tuple[Tensor, Tensor]:
    """p₊ and p₋: predictions at m + σe and m - σe."""
    with posterior.perturbed(draw, +1.0):
        plus_BC = _probabilities(model, images_BCHW)
    with posterior.perturbed(draw, -1.0):
        minus_BC = _probabilities(model, images_BCHW)
    return plus_BC, minus_BC


def _logits_and_tangent(
    model: nn.Module, images_BCHW: Tensor, means: dict[str, Tensor], directions: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """f_m(x) and J_m(x) v, v = `directions`."""

    def logits(weights: dict[str, Tensor]) -> Tensor:
        outputs: Tensor = functional_call(model, weights, (images_BCHW,))
        return outputs

    both = jvp(logits, (means,), (directions,))
    return both[0], both[1]


@contextmanager
def _measuring(model: nn.Module, images_BCHW: Tensor) -> Iterator[None]:
    """Eval mode, no autocast, no gradients inside; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(images_BCHW.device.type, enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _quiet_forward_mode() -> Iterator[None]:
    """The first use of forward mode loads torch's own decompositions, written with what torch itself deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated", category=FutureWarning)
        yield
