"""SAM and its relatives on one vector of weights, from their papers' formulas alone: what the product is held against.

A gradient is a function of the weights; where there are several ranks, there is one for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.method_spec import ASAMSpec, BSAMSpec, LookSAMSpec, MSAMSpec, SAMSpec

Gradient = Callable[[Tensor], Tensor]


@dataclass
class State:
    """All that a method remembers."""

    w: Tensor
    v: Tensor
    """SGD's momentum; bSAM's too."""
    more: Tensor
    """LookSAM's component; bSAM's precision."""
    step: int = 0


def begin(w: Tensor, precision_init: float = 0.0) -> State:
    """Before the first step."""
    return State(w.clone(), torch.zeros_like(w), torch.full_like(w, precision_init))


def sgd(state: State, gradient: Tensor, method: SAMSpec | ASAMSpec | LookSAMSpec | MSAMSpec) -> None:
    """v = μv + g + δw; w = w - lr·v, or with Nesterov w - lr·(g + δw + μv)."""
    decayed = gradient + method.weight_decay * state.w
    state.v = method.momentum * state.v + decayed
    state.w = state.w - method.lr * (decayed + method.momentum * state.v if method.nesterov else state.v)
    state.step += 1


def mean(gradients: Sequence[Gradient], at: Sequence[Tensor]) -> Tensor:
    """The mean over ranks, each at its own weights."""
    return torch.stack([gradient(w) for gradient, w in zip(gradients, at, strict=True)]).mean(0)


def sam_step(state: State, gradients: Sequence[Gradient], method: SAMSpec) -> None:
    """m-SAM: each rank perturbs along its own gradient."""
    own = [gradient(state.w) for gradient in gradients]
    sgd(state, mean(gradients, [state.w + method.rho * g / g.norm() for g in own]), method)


def asam_step(state: State, gradients: Sequence[Gradient], method: ASAMSpec) -> None:
    """As SAM's, scaled by the weights."""
    own = [gradient(state.w) for gradient in gradients]
    at = [state.w + method.rho * state.w**2 * g / (state.w.abs() * g).norm() for g in own]
    sgd(state, mean(gradients, at), method)


def looksam_step(state: State, gradients: Sequence[Gradient], method: LookSAMSpec) -> None:
    """SAM's gradient and what is across the plain one, or the plain one with that added."""
    g = mean(gradients, [state.w] * len(gradients))
    if state.step % method.k == 0:
        g_s = mean(gradients, [state.w + method.rho * g / g.norm()] * len(gradients))
        cosine = (g @ g_s) / (g.norm() * g_s.norm())
        state.more = g_s - g_s.norm() * cosine * g / g.norm()
    else:
        g_s = g + method.alpha * g.norm() / state.more.norm() * state.more
    sgd(state, g_s, method)


def msam_step(state: State, gradients: Sequence[Gradient], method: MSAMSpec) -> None:
    """The gradient ahead, along the momentum."""
    at = state.w - method.rho * state.v / state.v.norm() if state.step else state.w
    sgd(state, mean(gradients, [at] * len(gradients)), method)


def bsam_step(state: State, gradients: Sequence[Gradient], method: BSAMSpec, noise: Tensor) -> None:
    """One step with the standard normal draw `noise`."""
    assert method.ess is not None
    s = state.more
    g = mean(gradients, [state.w + noise / (method.ess * s).sqrt()] * len(gradients))
    g_s = mean(gradients, [state.w + method.rho * g / s] * len(gradients))
    state.v = method.beta1 * state.v + (1 - method.beta1) * (g_s + method.weight_decay * state.w)
    state.w = state.w - method.lr * state.v / s
    state.more = method.beta2 * s + (1 - method.beta2) * (s.sqrt() * g.abs() + method.damping + method.weight_decay)
    state.step += 1
