"""SAM, sharpness-aware minimization (Foret et al. 2021), and ASAM (Kwon et al. 2021), over SGD with momentum.

    g = gradient at w;  u = g/‖g‖                      sam_directions
                        u = w²⊙g/‖|w|⊙g‖               asam_directions
    g_s = gradient at w + ρu;  torch's SGD step with g_s

First the pure rules, on lists of tensors that one norm runs over, then thin optimizers on torch's SGD kernel. Outside
of `perturbed` the parameters are always w.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from trainer.optim.layout import follow, laid_out
from trainer.optim.perturbation import displaced, divided_by_norm, norm_of
from trainer.optim.skipping import SkippingOptimizer, gradients_of


def sam_directions(gradients: list[Tensor]) -> list[Tensor]:
    """u = g/‖g‖."""
    return divided_by_norm(gradients, norm_of(gradients))


def asam_directions(weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """u = w²⊙g/‖|w|⊙g‖: large weights move more, so that rescaling layers against each other changes nothing."""
    sizes = torch._foreach_abs(weights)
    scaled = list(torch._foreach_mul(sizes, gradients))
    directions = divided_by_norm(scaled, norm_of(scaled))
    torch._foreach_mul_(directions, sizes)
    return directions


class SAM(SkippingOptimizer):
    """SAM. Two passes a step; on several ranks the first stays with its rank (m-SAM):

        optimizer.zero_grad()
        loss(model(x), y).backward()           # under DDP inside no_sync(), the forward pass too
        with optimizer.perturbed():
            loss(model(x), y).backward()
        optimizer.step()

    A gradient of the first pass that isn't finite makes all perturbed weights NaN, and by them the gradient of the
    second: DDP's average carries it to all ranks, which then skip the step together.
    """

    kind = "sam"

    def __init__(
        self,
        params: Any,  # torch's own ParamsT, which mypy can't express for groups
        lr: float,
        *,
        rho: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        """`rho`: length of the perturbation; the others are torch.optim.SGD's."""
        options = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, {"lr": lr, "rho": rho, **options})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; ValueError for one with gaps in its memory, which torch's fused kernel would walk through."""
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if torch.empty_like(parameter).stride() != parameter.stride():
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} has strides {parameter.stride()}: its elements must"
                    f" fill one stretch of memory, as after .contiguous()"
                )

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """The weights are w + ρu inside, and w again after, bit for bit. The gradients at hand are used up."""
        parameters = self._perturbable()
        with torch.no_grad():
            offsets = self._offsets(parameters) if parameters else []
        self.zero_grad()
        with displaced(parameters, offsets):
            del offsets  # its memory serves the passes inside
            yield

    def _perturbable(self) -> list[Tensor]:
        """The parameters that u is made for."""
        return [parameter for _, members in self._moving() for parameter in members]

    def _offsets(self, parameters: list[Tensor]) -> list[Tensor]:
        """ρu of each parameter."""
        rho_of = {p: group["rho"] for group in self.param_groups for p in group["params"]}
        return list(torch._foreach_mul(self._directions(parameters), [rho_of[p] for p in parameters]))

    def _directions(self, parameters: list[Tensor]) -> list[Tensor]:
        """u of each parameter."""
        return sam_directions(gradients_of(parameters))

    def _update(self) -> None:
        moving = [(group, members) for group, members in self._moving() if members]
        if not moving:
            return
        usable = self._usable(gradients_of([p for _, members in moving for p in members]))
        for group, members in moving:
            gradients = [laid_out(g, like=p) for p, g in zip(members, gradients_of(members), strict=True)]
            velocities = [self._velocity(p) if group["momentum"] else None for p in members]
            sgd(
                members,
                gradients,
                velocities,
                lr=group["lr"],
                momentum=group["momentum"],
                dampening=0.0,
                weight_decay=group["weight_decay"],
                nesterov=group["nesterov"],
                maximize=False,
                fused=True,
                found_inf=(~usable).float(),  # where this is 1 the kernel leaves weights and momentum alone
            )

    def _velocity(self, parameter: Tensor) -> Tensor:
        """SGD's v ← μv + g + δw; zero before the first step, for which torch's v ← g + δw is the same."""
        state: dict[str, Tensor] = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
        follow(state["momentum_buffer"], parameter)  # torch's kernel walks the memory of both
        return state["momentum_buffer"]


class ASAM(SAM):
    """SAM whose perturbation of a weight grows with the weight; its ρ is about ten times SAM's."""

    kind = "asam"

    def _directions(self, parameters: list[Tensor]) -> list[Tensor]:
        return asam_directions(parameters, gradients_of(parameters))
