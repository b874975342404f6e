"""bSAM, Bayesian SAM (Möllenhoff & Khan 2023, "SAM as an optimal relaxation of Bayes"): SAM that learns a posterior.

q = N(w, diag σ²), σ² = 1/(λs): s the precision of a weight over λ = ess. One step:

    θ = w + σe, e ~ N(0, I);  g = gradient at θ
    g' = gradient at w + ρg/s
    m ← β₁m + (1-β₁)(g' + δw)                   next_momentum
    w ← w - lr·m/s, with the old s              next_mean
    s ← β₂s + (1-β₂)(√s⊙|g| + γ + δ)            next_precision; γ = damping, δ = weight_decay

On several ranks: give each the same seed and let DDP average both gradients. All then draw the same noise, and the
result doesn't depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainer.optim.factor import Factor
from trainer.optim.layout import follow
from trainer.optim.noise import DrawKey, Stream, warn_of_other_noise
from trainer.optim.perturbation import displaced
from trainer.optim.posterior import Posterior
from trainer.optim.skipping import SkippingOptimizer, gradients_of

# A rate below is a constant times 1, or times 0 for a step that is skipped: then everything stays as it is. It is a
# scalar on the device, so that nobody waits for the decision.


def next_momentum(
    momenta: list[Tensor], gradients: list[Tensor], means: list[Tensor], weight_decay: float, rate: Tensor
) -> list[Tensor]:
    """m ← m + rate·(g' + δw - m); rate = 1-β₁."""
    changes = torch._foreach_add(gradients, means, alpha=weight_decay)
    torch._foreach_sub_(changes, momenta)
    torch._foreach_mul_(changes, rate)
    return list(torch._foreach_add(momenta, changes))


def next_mean(means: list[Tensor], momenta: list[Tensor], precisions: list[Tensor], rate: Tensor) -> list[Tensor]:
    """w ← w - rate·m/s; rate = lr."""
    changes = torch._foreach_div(momenta, precisions)
    torch._foreach_mul_(changes, rate)
    return list(torch._foreach_sub(means, changes))


def next_precision(precisions: list[Tensor], magnitudes: list[Tensor], floor: float, rate: Tensor) -> list[Tensor]:
    """s ← s + rate·(√s⊙|g| + γ+δ - s); rate = 1-β₂, floor = γ+δ."""
    changes = torch._foreach_sqrt(precisions)
    torch._foreach_mul_(changes, magnitudes)
    torch._foreach_add_(changes, floor)
    torch._foreach_sub_(changes, precisions)
    torch._foreach_mul_(changes, rate)
    return list(torch._foreach_add(precisions, changes))


class BSAM(SkippingOptimizer):
    """bSAM; the mean is in the parameters. Two passes a step:

    optimizer.zero_grad()
    with optimizer.sampled_params():
        loss(model(x), y).backward()
    with optimizer.perturbed():
        loss(model(x), y).backward()
    optimizer.step()
    """

    kind = "bsam"

    def __init__(
        self,
        params: Any,  # torch's own ParamsT, which mypy can't express for groups
        lr: float,
        ess: float,
        *,
        rho: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 2e-4,
        damping: float = 0.1,
        precision_init: float = 1.0,
        seed: int = 0,
    ) -> None:
        """`ess`: λ, the number of training examples; `precision_init`: s before the first step."""
        self._seed = seed
        self._magnitudes: dict[Tensor, Tensor] = {}  # |g| by parameter, from `perturbed` to `step`
        rates = {"lr": lr, "rho": rho, "beta1": beta1, "beta2": beta2}
        prior = {"ess": ess, "weight_decay": weight_decay, "damping": damping, "precision_init": precision_init}
        super().__init__(params, {**rates, **prior})

    def posterior(self) -> Posterior:
        """The posterior as it stands, over the parameters that aren't frozen."""
        numbered = ((group, p) for group in self.param_groups for p in group["params"])
        return Posterior.of(
            tuple(
                Factor(p, index, self._state(p, group)["precision"], group["ess"], 0.0)  # s stands for h+δ
                for index, (group, p) in enumerate(numbered)
                if p.requires_grad
            )
        )

    @contextmanager
    def sampled_params(self) -> Iterator[None]:
        """The weights are a sample from the posterior inside, and the mean again after, even if an exception passes."""
        with self.posterior().perturbed(DrawKey(self._seed, Stream.TRAINING, self._num_steps, 0)):
            yield

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """The weights are w + ρg/s inside, and w again after, bit for bit. The gradients at hand are used up."""
        parameters: list[Tensor] = []
        offsets: list[Tensor] = []
        self._magnitudes = {}
        with torch.no_grad():
            for group, members in self._moving():
                if not members:
                    continue
                gradients = gradients_of(members)
                precisions = [self._state(p, group)["precision"] for p in members]
                parameters += members
                offsets += torch._foreach_mul(torch._foreach_div(gradients, precisions), group["rho"])
                self._magnitudes |= zip(members, torch._foreach_abs(gradients), strict=True)
        self.zero_grad()
        with displaced(parameters, offsets):
            del offsets  # its memory serves the passes inside
            yield

    def _update(self) -> None:
        moving = [(group, [p for p in members if p in self._magnitudes]) for group, members in self._moving()]
        moving = [(group, members) for group, members in moving if members]
        if not moving:
            return
        gradients = gradients_of([p for _, members in moving for p in members])
        magnitudes = [self._magnitudes[p] for _, members in moving for p in members]
        usable = self._usable([*gradients, *magnitudes])
        for tensor in (*gradients, *magnitudes):
            tensor.masked_fill_(~usable, 0)  # nothing times NaN is nothing
        for group, members in moving:
            self._update_group(group, members, usable.to(members[0].dtype))
        self._magnitudes = {}

    def _update_group(self, group: dict[str, Any], means: list[Tensor], usable: Tensor) -> None:
        """One group's momentum, mean and precision; `usable` is 1, or 0 to leave them as they are."""
        states = [self._state(p, group) for p in means]
        momenta = [state["momentum"] for state in states]
        precisions = [state["precision"] for state in states]
        magnitudes = [self._magnitudes[p] for p in means]
        decay, floor = group["weight_decay"], group["damping"] + group["weight_decay"]
        new_momenta = next_momentum(momenta, gradients_of(means), means, decay, usable * (1 - group["beta1"]))
        torch._foreach_copy_(momenta, new_momenta)
        torch._foreach_copy_(means, next_mean(means, momenta, precisions, usable * group["lr"]))
        new_precisions = next_precision(precisions, magnitudes, floor, usable * (1 - group["beta2"]))
        torch._foreach_copy_(precisions, new_precisions)

    def _state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """momentum m and precision s, laid out like the parameter."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            with torch.inference_mode(False):  # a first prediction may well be in it; training could not write then
                state["momentum"] = torch.zeros_like(parameter, requires_grad=False)
                state["precision"] = torch.full_like(parameter, group["precision_init"], requires_grad=False)
        follow(state["precision"], parameter)  # the kernels that draw samples walk the memory of both
        return state

    def _counters(self) -> dict[str, Any]:
        return {**super()._counters(), "seed": self._seed, "noise": self.posterior().kernels.noise_name}

    def _load_counters(self, counters: dict[str, Any]) -> None:
        super()._load_counters(counters)
        self._seed = counters["seed"]
        self._magnitudes = {}
        warn_of_other_noise(counters["noise"], self.posterior().kernels.noise_name)
