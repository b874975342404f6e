"""What IVON keeps of the MC samples of a step under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from trainer.optim.factor import Factor
from trainer.optim.kernels import Kernels
from trainer.optim.rank_average import Averages


class Gradient(NamedTuple):
    """A parameter's gradient, and the group it is in."""

    parameter: Tensor
    group: int
    """Position among the groups."""
    value: Tensor


@dataclass
class Samples:
    """The MC samples taken since the last step."""

    kernels: Kernels | None = None
    """That drew them."""
    count: int = 0
    is_open: bool = False
    """Whether the weights are a training sample at the moment."""
    factors: dict[Tensor, Factor] = field(default_factory=dict)
    """As they were when the newest sample was drawn: σ stays that of the sample if a schedule moves λ or δ."""
    grads: dict[Tensor, Tensor] = field(default_factory=dict)
    """Σ ĝ by parameter; only used with several samples a step."""
    estimates: dict[Tensor, Tensor] = field(default_factory=dict)
    """Σ f by parameter; only used with several samples a step, or averaged over ranks."""
    averages: Averages = field(default_factory=dict)
    """f of the newest sample, of the parameters whose gradient is averaged over ranks already."""
