"""What the optimizers beside IVON share: a step whose gradient is not finite is skipped on the device, and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.optim.perturbation import norm_of

AT_LEAST_0 = ("lr", "weight_decay", "rho", "damping")
ABOVE_0 = ("ess", "precision_init")
IN_0_1 = ("momentum", "beta1", "beta2")


class SkippingOptimizer(Optimizer):
    """Counts steps and skipped steps, and saves both beside torch's own state.

    A subclass has `_update`, which asks `_usable` once a step whether the step is to be made, without waiting for the
    device. A gradient whose norm overflows counts as not finite (in float32: above 1.8e19). Parameters that are frozen
    or have no gradient are left alone.
    """

    kind: ClassVar[str]
    """The entry of the state dict that holds the counters, by which another optimizer's state is told."""

    def __init__(self, params: Any, defaults: dict[str, float | bool]) -> None:  # Any: torch's own ParamsT
        self._num_steps = 0  # tried, the skipped ones too
        self._num_skipped = 0  # up to the last load_state_dict
        self._num_skipped_since: Tensor | None = None  # on the device, so that counting needs no synchronisation
        super().__init__(params, dict(defaults))

    @property
    def num_skipped_steps(self) -> int:
        """Steps skipped because a gradient wasn't finite. Reading it waits for the device."""
        return self._num_skipped + (0 if self._num_skipped_since is None else int(self._num_skipped_since.item()))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with their own hyperparameters where given."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters from the gradients that the passes of this step have left."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        self._num_steps += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict with one more entry: the counters."""
        return {**super().state_dict(), self.kind: self._counters()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as the optimizer that was saved, on any device and in any memory format."""
        if self.kind not in state_dict:
            raise ValueError(f"this state dict has no entry {self.kind!r}: another optimizer saved it")
        super().load_state_dict(state_dict)
        self._load_counters(state_dict[self.kind])
        for parameter, state in self.state.items():
            for name, value in state.items():
                state[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)

    def _counters(self) -> dict[str, Any]:
        return {"num_steps": self._num_steps, "num_skipped": self.num_skipped_steps}

    def _load_counters(self, counters: dict[str, Any]) -> None:
        self._num_steps = counters["num_steps"]
        self._num_skipped, self._num_skipped_since = counters["num_skipped"], None

    def _update(self) -> None:
        """Make the step, or none where the gradients are not `_usable`."""
        raise NotImplementedError

    def _moving(self) -> list[tuple[dict[str, Any], list[Tensor]]]:
        """Each group with those of its parameters that are not frozen and have a gradient."""
        return [
            (group, [p for p in group["params"] if p.requires_grad and p.grad is not None and p.numel()])
            for group in self.param_groups
        ]

    def _usable(self, gradients: list[Tensor]) -> Tensor:
        """Whether all are finite, as a tensor on the device; counts the step as skipped if not."""
        usable = norm_of(gradients).isfinite()
        skipped = (~usable).long()
        self._num_skipped_since = skipped if self._num_skipped_since is None else self._num_skipped_since + skipped
        return usable


def gradients_of(parameters: list[Tensor]) -> list[Tensor]:
    """The gradient of each, for parameters that have one."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(gradients) == len(parameters)
    return gradients


def _check(options: dict[str, Any]) -> None:
    """Refuse hyperparameters that have no meaning, naming the field, its value and what is allowed."""
    rules: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
        (AT_LEAST_0, lambda value: value >= 0, "at least 0"),
        (ABOVE_0, lambda value: value > 0, "above 0"),
        (IN_0_1, lambda value: 0 <= value < 1, "in [0, 1)"),
    )
    for names, holds, range_ in rules:
        for name in names:
            if name in options and not holds(options[name]):
                raise ValueError(f"{name} {options[name]} must be {range_}")
    if options.get("nesterov") and not options["momentum"]:
        raise ValueError("momentum 0 must be above 0 with nesterov")
