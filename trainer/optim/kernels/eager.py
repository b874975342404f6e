"""IVON's work in plain torch operations: for every device and type, and what the fused kernels are tested against.

On the CPU a parameter is worked through in pieces that stay in the cache: each of the rules' dozen operations would
otherwise go through main memory, and allocate it. Threads are torch's own; of Python's, two would wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.optim.factor import Factor
from trainer.optim.ivon_rules import (
    Rule,
    next_hessian,
    next_mean,
    next_momentum,
    price,
    squared_gradient,
    standard_deviation,
)
from trainer.optim.kernels import Draw, Move
from trainer.optim.layout import is_dense, laid_out
from trainer.optim.noise import PIECE, DrawKey, NoiseSource, seeded_normal, seeded_pieces


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
                for weights, saved in _pieces(factor.parameter, mean):
                    saved.copy_(weights)
                moved.append((factor.parameter, mean))
                pieces = _pieces(factor.parameter, factor.hess)
                for (weights, hess), e in zip(pieces, self._noise(factor, draw), strict=True):
                    weights.addcmul_(e, standard_deviation(hess, factor.ess, factor.weight_decay), value=draw.sign)
        except BaseException:
            for parameter, mean in moved:
                parameter.copy_(mean)
            raise

    def restore(self, factors: Sequence[Factor], means: Sequence[Tensor]) -> None:
        """See Kernels."""
        if means:
            torch._foreach_copy_([factor.parameter for factor in factors], list(means))

    def price(self, factor: Factor, draw: Draw, grad: Tensor) -> Tensor:
        """See Kernels."""
        noise = self.noise(factor.parameter, draw.key, factor.index)
        return price(draw.sign * noise, grad, factor.standard_deviation())

    def usable(self, tensors: Sequence[Tensor], largest: float) -> Tensor:
        """See Kernels."""
        device = tensors[0].device
        found = torch.stack([tensor.abs().amax().to(device) for tensor in tensors]).amax()
        return found < largest  # false for NaN

    def update(self, moves: Sequence[Move], rule: Rule, draw: Draw, usable: Tensor) -> None:
        """See Kernels."""
        if usable.device.type == "cpu" and not usable:
            return
        for move in moves:
            mean, hessian = move.factor.parameter, move.factor.hess
            debias = (1 - rule.beta1**move.step).to(mean.dtype) if rule.debias else 1.0
            moving = None if usable.device.type == "cpu" else usable.to(mean.device)
            pieces = _pieces(mean, move.momentum, hessian, move.grad)
            for (m, g, h, grad), source in zip(pieces, self._sources(move, rule, draw), strict=True):
                momentum = next_momentum(g, grad, rule.beta1)
                hess = h
                if not rule.fixed_hessian:
                    hess = next_hessian(h, _estimate(h, grad, source, move, rule), rule.weight_decay, rule.beta2)
                ahead = next_mean(m, momentum, hess, debias, rule)
                for old, new in ((g, momentum), (h, hess), (m, ahead)):
                    old.copy_(new if moving is None else torch.where(moving, new, old))

    def _sources(self, move: Move, rule: Rule, draw: Draw) -> Iterable[Tensor]:
        """What the Hessian's estimate is made from beside the gradient: the estimate itself, or signed noise."""
        mean = move.factor.parameter
        if rule.fixed_hessian or move.estimate is not None or rule.hess_approx == "gradsq":
            return (source for _, source in _pieces(mean, mean if move.estimate is None else move.estimate))
        return (e if draw.sign > 0 else -e for e in self._noise(move.factor, draw))

    def _noise(self, factor: Factor, draw: Draw) -> Iterable[Tensor]:
        """e, in pieces that fit those of `_pieces`."""
        parameter = factor.parameter
        if self.noise is seeded_normal and _is_in_pieces(parameter):
            return seeded_pieces(parameter, draw.key, factor.index)
        noise = self.noise(parameter, draw.key, factor.index)
        return (e for _, e in _pieces(parameter, noise))


def _estimate(hess: Tensor, grad: Tensor, source: Tensor, move: Move, rule: Rule) -> Tensor:
    if move.estimate is not None:
        return source
    if rule.hess_approx == "gradsq":
        return squared_gradient(grad, move.factor.ess)
    return price(source, grad, standard_deviation(hess, move.factor.ess, move.factor.weight_decay))


def _is_in_pieces(parameter: Tensor) -> bool:
    return parameter.device.type == "cpu" and parameter.numel() > PIECE and is_dense(parameter)


def _pieces(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors piece by piece, as flat views in the memory order of `first`; whole ones where that is no gain.

    What is laid out otherwise than `first` is copied: only tensors laid out alike may be written to.
    """
    tensors = (first, *others)
    if not _is_in_pieces(first):
        return iter([tensors])
    return zip(*(torch.split(_flat(tensor, first), PIECE) for tensor in tensors), strict=True)


def _flat(tensor: Tensor, like: Tensor) -> Tensor:
    return laid_out(tensor, like).detach().as_strided((tensor.numel(),), (1,))
