"""IVON's work in plain torch operations: for every device and type, and what the fused kernels are tested against.

On the CPU a parameter is worked through in pieces that stay in the cache, and parameters share out over threads: each
of the rules' dozen operations would otherwise go through main memory, and allocate it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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
from trainer.optim.kernels import LARGEST_GRADIENT, Draw, Move, is_dense
from trainer.optim.kernels.threads import run_all
from trainer.optim.noise import DrawKey, NoiseSource, seeded_normal

PIECE = 2**15
"""Elements worked on at a time: torch gives so few to one thread, and sixteen such tensors fit into the cache."""
MIN_WEIGHTS_FOR_THREADS = 2**18


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

        @torch.no_grad()  # which holds for the thread it is said in
        def move(factor: Factor, mean: Tensor) -> None:
            noise = self.noise(factor.parameter, draw.key, factor.index)
            moved.append((factor.parameter, mean.copy_(factor.parameter)))
            for weights, hess, e in _pieces(factor.parameter, factor.hess, noise):
                weights.addcmul_(e, standard_deviation(hess, factor.ess, factor.weight_decay), value=draw.sign)

        try:
            _run(move, [factor.parameter for factor in factors], factors, means)
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

        @torch.no_grad()
        def move_on(move: Move) -> None:
            factor, mean = move.factor, move.factor.parameter
            debias = (1 - rule.beta1**move.step).to(mean.dtype) if rule.debias else 1.0
            moving = usable.to(mean.device)
            state = (mean, move.momentum, factor.hess)
            for m, g, h, grad, source in _pieces(*state, move.grad, self._source(move, rule, draw)):
                momentum = next_momentum(g, grad, rule.beta1)
                hess = h
                if not rule.fixed_hessian:
                    hess = next_hessian(h, _estimate(h, grad, source, move, rule), rule.weight_decay, rule.beta2)
                moved = next_mean(m, momentum, hess, debias, rule)
                for old, new in ((g, momentum), (h, hess), (m, moved)):
                    old.copy_(torch.where(moving, new, old))

        _run(move_on, [move.factor.parameter for move in moves], moves)

    def _source(self, move: Move, rule: Rule, draw: Draw) -> Tensor | None:
        """What the Hessian's estimate is made from beside the gradient: the estimate itself, or the noise."""
        if rule.fixed_hessian or move.estimate is not None or rule.hess_approx == "gradsq":
            return move.estimate
        noise = self.noise(move.factor.parameter, draw.key, move.factor.index)
        return noise if draw.sign > 0 else -noise


def _estimate(hess: Tensor, grad: Tensor, source: Tensor, move: Move, rule: Rule) -> Tensor:
    if move.estimate is not None:
        return source
    if rule.hess_approx == "gradsq":
        return squared_gradient(grad, move.factor.ess)
    return price(source, grad, standard_deviation(hess, move.factor.ess, move.factor.weight_decay))


def _pieces(first: Tensor, *others: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
    """The tensors piece by piece, as flat views in the memory order of `first`; whole ones where that is no gain.

    What is laid out otherwise than `first` is copied: only tensors laid out alike may be written to. In place of None,
    which nobody reads, comes `first`.
    """
    tensors = [first, *(first if other is None else other for other in others)]
    if first.device.type != "cpu" or first.numel() <= PIECE or not is_dense(first):
        return iter([tuple(tensors)])
    return zip(*(torch.split(_flat(tensor, first), PIECE) for tensor in tensors), strict=True)


def _flat(tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.stride() != like.stride():
        tensor = torch.empty_like(like, requires_grad=False).copy_(tensor)
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _run(work: Callable[..., None], parameters: Sequence[Tensor], *arguments: Iterable[object]) -> None:
    """Call `work` for each parameter: on several threads if they are on the CPU and large, else in turn."""
    tasks = [partial(work, *each) for each in zip(*arguments, strict=True)]
    is_large = sum(parameter.numel() for parameter in parameters) >= MIN_WEIGHTS_FOR_THREADS
    if is_large and all(parameter.device.type == "cpu" for parameter in parameters):
        run_all(tasks)
    else:
        for task in tasks:
            task()
