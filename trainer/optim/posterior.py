"""The Gaussian posterior over the weights, q = N(m, diag σ²), as a method of training has learned it.

The model's parameters hold the mean m. `perturbed` moves them to a sample and back: for a training step, for prediction
and for the estimators of label noise alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.optim.factor import Factor
from trainer.optim.kernels import Draw, Kernels, kernels_for
from trainer.optim.noise import DrawKey


class MeanStore:
    """Memory for the means while the weights are a sample: taken and given back, so that each draw finds it warm."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, factors: tuple[Factor, ...]) -> list[Tensor]:
        """One tensor for each factor, laid out like its parameter."""
        means, self._free = self._free, []
        if len(means) == len(factors) and all(_alike(m, f.parameter) for m, f in zip(means, factors, strict=True)):
            return means
        with torch.inference_mode(False):  # nothing outside could write to what was made inside
            return [torch.empty_like(factor.parameter, requires_grad=False) for factor in factors]

    def give_back(self, means: list[Tensor]) -> None:
        """Keep the tensors for the next draw."""
        self._free = means


def _alike(mean: Tensor, parameter: Tensor) -> bool:
    return (
        mean.shape == parameter.shape
        and mean.stride() == parameter.stride()
        and mean.dtype == parameter.dtype
        and mean.device == parameter.device
    )


@dataclass(frozen=True)
class Posterior:
    """q = N(m, diag σ²) over the trainable parameters of a model."""

    factors: tuple[Factor, ...]
    kernels: Kernels
    store: MeanStore = field(default_factory=MeanStore)

    @classmethod
    def of(cls, factors: tuple[Factor, ...]) -> Posterior:
        """The posterior of these factors, with the fastest kernels that serve them."""
        return cls(factors, kernels_for([factor.parameter for factor in factors]))

    def standard_deviations(self) -> list[Tensor]:
        """σ of each trainable parameter."""
        return [factor.standard_deviation() for factor in self.factors]

    def noise(self, parameter: Tensor, draw: DrawKey, index: int) -> Tensor:
        """e of one parameter, exactly that of `perturbed`."""
        return self.kernels.normal(parameter, draw, index)

    @contextmanager
    def perturbed(self, draw: DrawKey, sign: float = 1.0) -> Iterator[None]:
        """The weights are θ = m + sign·e·σ inside; afterwards, whatever happened, they are m again, bit for bit.

        Memory: one copy of the mean. Storage and memory format of the parameters don't change.
        """
        means = self.store.take(self.factors)
        with torch.no_grad():
            self.kernels.perturb(self.factors, means, Draw(draw, sign))
        try:
            torch.clear_autocast_cache()  # an autocast around this would go on with bf16 copies of other weights
            yield
        finally:
            with torch.no_grad():
                self.kernels.restore(self.factors, means)
            torch.clear_autocast_cache()
            self.store.give_back(means)
