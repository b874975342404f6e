"""The Gaussian posterior over the weights, q = N(m, diag σ²), as a method of training has learned it.

The model's parameters hold the mean m. `perturbed` moves them to a sample and back: for a training step, for prediction
and for the estimators of label noise alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.optim.noise import DrawKey, NoiseSource


def standard_deviation(hess: Tensor, ess: float, weight_decay: float) -> Tensor:
    """σ = 1/√(λ(h+δ)) (Shen et al. 2024, Alg. 1): λ effective sample size, h diagonal Hessian, δ weight decay."""
    return (ess * (hess + weight_decay)).rsqrt()


@dataclass(frozen=True)
class Factor:
    """One parameter's part of the posterior."""

    parameter: Tensor
    """Holds the mean."""
    index: int
    """Position among all parameters of the optimizer; names its noise."""
    hess: Tensor
    ess: float
    weight_decay: float

    def standard_deviation(self) -> Tensor:
        """σ, of the parameter's shape."""
        return standard_deviation(self.hess, self.ess, self.weight_decay)


@dataclass(frozen=True)
class Posterior:
    """q = N(m, diag σ²) over the trainable parameters of a model."""

    factors: tuple[Factor, ...]
    noise: NoiseSource

    def standard_deviations(self) -> list[Tensor]:
        """σ of each trainable parameter."""
        return [factor.standard_deviation() for factor in self.factors]

    @contextmanager
    def perturbed(self, draw: DrawKey, sign: float = 1.0) -> Iterator[None]:
        """The weights are θ = m + sign·e·σ inside; afterwards, whatever happened, they are m again, bit for bit.

        Memory: one copy of the mean while it lasts. Storage and memory format of the parameters don't change.
        """
        means: list[Tensor] = []
        try:
            with torch.no_grad():
                for factor in self.factors:
                    means.append(factor.parameter.detach().clone())
                    noise = self.noise(factor.parameter, draw, factor.index)
                    factor.parameter.addcmul_(noise, factor.standard_deviation(), value=sign)
            yield
        finally:
            with torch.no_grad():
                for factor, mean in zip(self.factors, means, strict=False):  # fewer means if drawing itself failed
                    factor.parameter.copy_(mean)
