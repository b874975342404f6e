"""MSAM, Momentum-SAM (Becker et al. 2024, arXiv 2401.12033): SAM's effect without a second pass. One step:

g_s = gradient at w - ρv/‖v‖, v SGD's momentum        msam_directions
v ← μv + g_s + δw;  w ← w - lr·v                      torch's SGD step
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.optim.perturbation import divided_by_norm, norm_of
from trainer.optim.sam import SAM


def msam_directions(velocities: list[Tensor]) -> list[Tensor]:
    """u = -v/‖v‖: ahead, where SGD's momentum is taking the weights. Zero before the first step."""
    directions = divided_by_norm(velocities, norm_of(velocities))
    torch._foreach_neg_(directions)
    return directions


class MSAM(SAM):
    """MSAM. One pass a step, all of it inside `perturbed`, which needs no gradient before; v is equal on all ranks.

    optimizer.zero_grad()
    with optimizer.perturbed():
        loss(model(x), y).backward()
    optimizer.step()
    """

    kind = "msam"

    def __init__(
        self,
        params: Any,  # torch's own ParamsT, which mypy can't express for groups
        lr: float,
        *,
        rho: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        """As SAM's; `momentum` must be above 0."""
        if not momentum:
            raise ValueError("momentum 0 must be above 0: MSAM perturbs along it")
        super().__init__(params, lr, rho=rho, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def _perturbable(self) -> list[Tensor]:
        return [
            p
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad and "momentum_buffer" in self.state.get(p, {})
        ]

    def _directions(self, parameters: list[Tensor]) -> list[Tensor]:
        return msam_directions([self._velocity(p) for p in parameters])
