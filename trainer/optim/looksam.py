"""LookSAM (Liu et al. 2022, "Towards Efficient and Scalable Sharpness-Aware Minimization"): SAM in each k-th step only.

    SAM's steps:  u = g/‖g‖;  g_s = gradient at w + ρu;  keep g_v = g_s - (g_s·u)u         across
    in between:   g_s = g + α·‖g‖/‖g_v‖·g_v                                                correction
    every step:   torch's SGD step with g_s

g_v is what SAM adds across the gradient: it turns slowly, so that it serves a few steps. Norms and products run over
all parameters as one vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.optim.perturbation import SMALLEST_NORM, norm_of
from trainer.optim.sam import SAM
from trainer.optim.skipping import gradients_of


def across(gradients: list[Tensor], directions: list[Tensor]) -> list[Tensor]:
    """g_v = g_s - (g_s·u)u, for u of length 1 (or 0)."""
    products = torch._foreach_mul(gradients, directions)
    along = torch.stack([product.sum() for product in products]).sum()
    return list(torch._foreach_sub(gradients, torch._foreach_mul(directions, along)))


def correction(gradients: list[Tensor], components: list[Tensor], alpha: float) -> list[Tensor]:
    """α·‖g‖/‖g_v‖·g_v."""
    ratio = norm_of(gradients) / (norm_of(components) + SMALLEST_NORM)
    return list(torch._foreach_mul(components, alpha * ratio))


class LookSAM(SAM):
    """LookSAM. Used like SAM, but `perturbed` is entered only where `is_sam_step`.

    On several ranks the gradients of both passes are averaged, so that all keep the same g_v.
    """

    kind = "looksam"

    def __init__(
        self,
        params: Any,  # torch's own ParamsT, which mypy can't express for groups
        lr: float,
        *,
        rho: float = 0.05,
        k: int = 5,
        alpha: float = 0.2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        """`k`: each k-th step is SAM's; `alpha`: weight of the correction in between; the others as in SAM."""
        if k < 1:
            raise ValueError(f"k {k} must be at least 1")
        if alpha < 0:
            raise ValueError(f"alpha {alpha} must be at least 0")
        self._k = k
        self._alpha = alpha
        self._kept: dict[Tensor, Tensor] = {}  # u by parameter, from `perturbed` to `step`
        super().__init__(params, lr, rho=rho, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    @property
    def is_sam_step(self) -> bool:
        """Whether the step under way is one of SAM's."""
        return self._num_steps % self._k == 0

    def _directions(self, parameters: list[Tensor]) -> list[Tensor]:
        directions = super()._directions(parameters)
        self._kept = dict(zip(parameters, directions, strict=True))
        return directions

    def _update(self) -> None:
        parameters = self._perturbable()
        if self._kept:
            self._keep_component([p for p in parameters if p in self._kept])
        elif parameters:
            gradients = gradients_of(parameters)
            components = [self._component(p) for p in parameters]
            torch._foreach_add_(gradients, correction(gradients, components, self._alpha))
        self._kept = {}
        super()._update()

    def _keep_component(self, parameters: list[Tensor]) -> None:
        """Replace g_v, unless this step's is not finite."""
        components = across(gradients_of(parameters), [self._kept[p] for p in parameters])
        usable = norm_of(components).isfinite()
        for parameter, new in zip(parameters, components, strict=True):
            old = self._component(parameter)
            old.copy_(torch.where(usable, new, old))

    def _component(self, parameter: Tensor) -> Tensor:
        """g_v; zero before SAM's first step."""
        state: dict[str, Tensor] = self.state[parameter]
        if "component" not in state:
            state["component"] = torch.zeros_like(parameter, requires_grad=False)
        return state["component"]

    def _counters(self) -> dict[str, Any]:
        return {**super()._counters(), "k": self._k, "alpha": self._alpha}

    def _load_counters(self, counters: dict[str, Any]) -> None:
        super()._load_counters(counters)
        self._k, self._alpha = counters["k"], counters["alpha"]
        self._kept = {}
