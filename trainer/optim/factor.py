"""One parameter's part of a Gaussian posterior q = N(m, diag σ²), σ² = 1/(λ(h+δ))."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trainer.optim.ivon_rules import standard_deviation


@dataclass(frozen=True)
class Factor:
    """A parameter and what its width depends on."""

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
