"""IVON's work on whole models, in three ways that agree: plain torch, one compiled pass on the CPU, one on CUDA.

Plain torch (`eager`) serves every device and type. The fused kernels read and write each weight once and make the noise
as they go (Philox 4x32-10, a counter-based generator, and Box-Muller), on dense float32 weights.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from trainer.optim.factor import Factor
from trainer.optim.ivon_rules import Rule
from trainer.optim.layout import is_dense
from trainer.optim.noise import DrawKey, Stream

MIN_FUSED_WEIGHTS = 2**18
"""Smaller models stay with plain torch: on the CPU, loading the compiled kernels would take longer than they save."""


@dataclass(frozen=True)
class Draw:
    """One draw of all weights: θ = m + sign·σ⊙e(key)."""

    key: DrawKey
    sign: float = 1.0


@dataclass(frozen=True)
class Move:
    """What a step knows of one parameter."""

    factor: Factor
    """As it was when the newest sample was drawn."""
    momentum: Tensor
    step: Tensor
    """The parameter's updates so far, a float64 scalar on its device, already counting this one."""
    grad: Tensor
    """ḡ, over samples and ranks."""
    estimate: Tensor | None
    """f, over samples and ranks; None: the kernel makes it from ḡ and the draw, the only one of this step."""


class Kernels(Protocol):
    """Everything that touches every weight."""

    @property
    def noise_name(self) -> str:
        """Which generator draws: two with the same name give the same noise, to rounding."""

    def normal(self, parameter: Tensor, draw: DrawKey, index: int) -> Tensor:
        """e ~ N(0, I), of the parameter's shape, layout, dtype and device."""

    def perturb(self, factors: Sequence[Factor], means: Sequence[Tensor], draw: Draw) -> None:
        """Copy each mean into its place in `means` and move the parameter to the sample θ: all of them, or none."""

    def restore(self, factors: Sequence[Factor], means: Sequence[Tensor]) -> None:
        """Copy each mean back into its parameter."""

    def price(self, factor: Factor, draw: Draw, grad: Tensor) -> Tensor:
        """sign·e⊙ĝ/σ of one parameter."""

    def usable(self, tensors: Sequence[Tensor], largest: float) -> Tensor:
        """Whether every element is finite and smaller in size than `largest`: a bool scalar on the device."""

    def update(self, moves: Sequence[Move], rule: Rule, draw: Draw, usable: Tensor) -> None:
        """IVON's step on momentum, Hessian and mean; nothing changes where `usable` is false."""


def kernels_for(parameters: Sequence[Tensor]) -> Kernels:
    """The fastest kernels that serve all of these parameters."""
    devices = {parameter.device for parameter in parameters}
    fits = all(parameter.dtype == torch.float32 and is_dense(parameter) for parameter in parameters)
    is_large = sum(parameter.numel() for parameter in parameters) >= MIN_FUSED_WEIGHTS
    if not (fits and is_large and len(devices) == 1):
        return _eager_kernels()
    device = devices.pop()
    compiler = {"cpu": "numba", "cuda": "triton"}.get(device.type)
    return _compiled_kernels(device) if compiler and _is_installed(compiler) else _eager_kernels()


@lru_cache
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@lru_cache
def _eager_kernels() -> Kernels:
    from trainer.optim.kernels.eager import EagerKernels  # noqa: PLC0415 (a cycle: it needs the dataclasses above)

    return EagerKernels()


@lru_cache
def _compiled_kernels(device: torch.device) -> Kernels:
    """The kernels, after a try: numba wants a folder to write to, Triton a C compiler, and not every GPU will do."""
    try:
        kernels = _kernels_of(device.type)
        kernels.normal(torch.empty(1, device=device), DrawKey(0, Stream.TRAINING, 0, 0), 0)
    except Exception as error:  # whatever it is that they lack, plain torch does the work
        warnings.warn(f"IVON goes on without its compiled kernels, slower: {error}", stacklevel=2)
        return _eager_kernels()
    return kernels


def _kernels_of(device_type: str) -> Kernels:
    if device_type == "cuda":
        from trainer.optim.kernels.cuda import CUDAKernels  # noqa: PLC0415 (Triton takes most of a second to import)

        return CUDAKernels()
    from trainer.optim.kernels.cpu import CPUKernels  # noqa: PLC0415 (numba takes most of a second to import)

    return CPUKernels()
