"""IVON's work in plain torch operations: for every device and type, and what the fused kernels are tested against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.optim.factor import Factor
from trainer.optim.ivon_rules import Rule, next_hessian, next_mean, next_momentum, price, squared_gradient
from trainer.optim.kernels import LARGEST_GRADIENT, Draw, Move
from trainer.optim.noise import DrawKey, NoiseSource, seeded_normal


@dataclass(frozen=True)
class EagerKernels:
    """Kernels of plain torch operations, on noise from any source."""

    noise: NoiseSource = seeded_normal

    @property
    def noise_name(self) -> str:
        """torch's own generator, or that of the source."""
        return "torch" if self.noise is seeded_normal else "own"

    def normal(self, parameter: Tensor, draw: DrawKey, index: int) -> Tensor:
        """See Kernels."""
        return self.noise(parameter, draw, index)

    def perturb(self, factors: Sequence[Factor], means: Sequence[Tensor], draw: Draw) -> None:
        """See Kernels."""
        moved: list[tuple[Tensor, Tensor]] = []
        try:
            for factor, mean in zip(factors, means, strict=True):
                noise = self.noise(factor.parameter, draw.key, factor.index)
                moved.append((factor.parameter, mean.copy_(factor.parameter)))
                factor.parameter.addcmul_(noise, factor.standard_deviation(), value=draw.sign)
        except BaseException:
            for parameter, mean in moved:
                parameter.copy_(mean)
            raise

    def price(self, factor: Factor, draw: Draw, grad: Tensor) -> Tensor:
        """See Kernels."""
        noise = self.noise(factor.parameter, draw.key, factor.index)
        return price(draw.sign * noise, grad, factor.standard_deviation())

    def usable(self, grads: Sequence[Tensor]) -> Tensor:
        """See Kernels."""
        device = grads[0].device
        largest = torch.stack([grad.abs().amax().to(device) for grad in grads]).amax()
        return largest < LARGEST_GRADIENT  # false for NaN

    def update(self, moves: Sequence[Move], rule: Rule, draw: Draw, usable: Tensor) -> None:
        """See Kernels."""
        for move in moves:
            mean, hess, device = move.factor.parameter, move.factor.hess, move.factor.parameter.device
            momentum = next_momentum(move.momentum, move.grad, rule.beta1)
            widened = hess if rule.fixed_hessian else self._next_hessian(move, rule, draw)
            debias = (1 - rule.beta1**move.step).to(mean.dtype) if rule.debias else 1.0
            moved = next_mean(mean, momentum, widened, debias, rule)
            moving = usable.to(device)
            for old, new in ((move.momentum, momentum), (hess, widened), (mean, moved)):
                old.copy_(torch.where(moving, new, old))

    def _next_hessian(self, move: Move, rule: Rule, draw: Draw) -> Tensor:
        estimate = move.estimate
        if estimate is None and rule.hess_approx == "price":
            estimate = self.price(move.factor, draw, move.grad)
        elif estimate is None:
            estimate = squared_gradient(move.grad, move.factor.ess)
        return next_hessian(move.factor.hess, estimate, rule.weight_decay, rule.beta2)
