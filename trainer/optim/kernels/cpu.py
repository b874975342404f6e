"""IVON's work on dense float32 weights on the CPU: compiled by numba, one pass over memory, as many threads as torch.

Weights are taken in blocks that stay in the innermost cache: their noise is made, used and forgotten there (philox.py).
Bytes moved per weight: 16 to sample, 8 to restore, 4 to look for NaN, 28 to update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import float32, int64, njit, uint32, void
from numpy.typing import NDArray
from torch import Tensor

from trainer.optim.factor import Factor
from trainer.optim.ivon_rules import Rule
from trainer.optim.kernels import Draw, Move
from trainer.optim.kernels.naming import BLOCK, FIXED, GIVEN, PRICE, SQUARED_GRADIENT, name_of, source_of
from trainer.optim.kernels.philox import FAST, fill_block
from trainer.optim.kernels.threads import run_all
from trainer.optim.layout import laid_out
from trainer.optim.noise import DrawKey

Array = NDArray[np.float32]
_WORDS, _WEIGHTS = uint32[::1], float32[::1]
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": FAST, "cache": True}
_HALF = np.float32(0.5)
MIN_BLOCKS_A_THREAD = 64


# --------------------------------------------------------------- loops; (first, last) are blocks, all arrays are flat


@njit(void(int64, int64, _WORDS, _WORDS, _WEIGHTS), **_OPTIONS)
def _normal(first, last, key, name, out):  # type: ignore[no-untyped-def]  # numba's signature is above, here and below
    e = np.empty(BLOCK, np.float32)
    for block in range(first, last):
        part = out[block * BLOCK : (block + 1) * BLOCK]
        fill_block(key, name, block, e)
        for i in range(len(part)):
            part[i] = e[i]


@njit(void(int64, int64, _WORDS, _WORDS, _WEIGHTS, _WEIGHTS, _WEIGHTS, float32, float32, float32), **_OPTIONS)
def _perturb(first, last, key, name, weights, hess, means, ess, decay, sign):  # type: ignore[no-untyped-def]
    """means ← weights; weights ← weights + sign·e/√(λ(h+δ))."""
    e = np.empty(BLOCK, np.float32)
    for block in range(first, last):
        w = weights[block * BLOCK : (block + 1) * BLOCK]
        h = hess[block * BLOCK : (block + 1) * BLOCK]
        m = means[block * BLOCK : (block + 1) * BLOCK]
        fill_block(key, name, block, e)
        # A loop for each array that is written: the compiler proves no more than that they don't overlap in pairs.
        for i in range(len(w)):
            e[i] = sign * e[i] / np.sqrt(ess * (h[i] + decay))
        for i in range(len(w)):
            m[i] = w[i]
        for i in range(len(w)):
            w[i] += e[i]


@njit(void(int64, int64, _WORDS, _WORDS, _WEIGHTS, _WEIGHTS, _WEIGHTS, float32, float32, float32), **_OPTIONS)
def _price(first, last, key, name, grads, hess, out, ess, decay, sign):  # type: ignore[no-untyped-def]
    """out ← sign·e·ĝ·√(λ(h+δ))."""
    e = np.empty(BLOCK, np.float32)
    for block in range(first, last):
        g = grads[block * BLOCK : (block + 1) * BLOCK]
        h = hess[block * BLOCK : (block + 1) * BLOCK]
        f = out[block * BLOCK : (block + 1) * BLOCK]
        fill_block(key, name, block, e)
        for i in range(len(g)):
            f[i] = sign * e[i] * g[i] * np.sqrt(ess * (h[i] + decay))


@njit(void(int64, int64, _WEIGHTS, _WEIGHTS), **_OPTIONS)
def _copy(first, last, source, target):  # type: ignore[no-untyped-def]
    target[first * BLOCK : last * BLOCK] = source[first * BLOCK : last * BLOCK]


@njit(int64(int64, int64, _WEIGHTS, float32), **_OPTIONS)
def _count_unusable(first, last, array, largest):  # type: ignore[no-untyped-def]
    part = array[first * BLOCK : last * BLOCK]
    count = np.int32(0)
    for i in range(len(part)):
        count += np.int32(not abs(part[i]) < largest)  # true for NaN
    return count


@njit(
    void(int64, int64, _WORDS, _WORDS, _WEIGHTS, _WEIGHTS, _WEIGHTS, _WEIGHTS, _WEIGHTS, int64, _WEIGHTS),
    **_OPTIONS,
)
def _update(first, last, key, name, weights, momenta, hess, grads, estimates, source, c):  # type: ignore[no-untyped-def]
    """Lines 2 to 5 of IVON; `c` holds the constants in the order of `_constants`."""
    ess, old_decay, sign, rest1, rest2, decay, lr, debias, radius = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8]
    f = np.empty(BLOCK, np.float32)
    for block in range(first, last):
        m = weights[block * BLOCK : (block + 1) * BLOCK]
        v = momenta[block * BLOCK : (block + 1) * BLOCK]
        h = hess[block * BLOCK : (block + 1) * BLOCK]
        g = grads[block * BLOCK : (block + 1) * BLOCK]
        if source == PRICE:
            fill_block(key, name, block, f)
            for i in range(len(m)):
                f[i] = sign * f[i] * g[i] * np.sqrt(ess * (h[i] + old_decay))
        elif source == SQUARED_GRADIENT:
            for i in range(len(m)):
                f[i] = ess * g[i] * g[i]
        elif source == GIVEN:
            given = estimates[block * BLOCK : (block + 1) * BLOCK]
            for i in range(len(m)):
                f[i] = given[i]
        for i in range(len(m)):
            v[i] += rest1 * (g[i] - v[i])
        if source != FIXED:
            for i in range(len(m)):
                change = rest2 * (f[i] - h[i])
                h[i] += change + _HALF * change * change / (h[i] + decay)
        for i in range(len(m)):
            direction = (v[i] / debias + decay * m[i]) / (h[i] + decay)
            direction = radius if direction > radius else direction
            direction = -radius if direction < -radius else direction
            m[i] -= lr * direction


# ------------------------------------------------------------------------------------------------------------ kernels


class CPUKernels:
    """Kernels compiled for this processor."""

    noise_name = "philox"

    def normal(self, parameter: Tensor, draw: DrawKey, index: int) -> Tensor:
        """See Kernels."""
        noise = torch.empty_like(parameter, requires_grad=False)
        _run([_Task(_normal, noise.numel(), (*_name(draw, index), _flat(noise)))])
        return noise

    def perturb(self, factors: Sequence[Factor], means: Sequence[Tensor], draw: Draw) -> None:
        """See Kernels."""
        tasks = []
        for f, mean in zip(factors, means, strict=True):
            arrays = (_flat(f.parameter), _flat(f.hess), _flat(mean))
            arguments = (*_name(draw.key, f.index), *arrays, f.ess, f.weight_decay, draw.sign)
            tasks.append(_Task(_perturb, mean.numel(), arguments))
        try:
            _run(tasks)
        except BaseException:  # `_run` finishes what it began, so that all means are saved
            self.restore(factors, means)
            raise

    def restore(self, factors: Sequence[Factor], means: Sequence[Tensor]) -> None:
        """See Kernels."""
        arrays = [(_flat(mean), _flat(f.parameter)) for f, mean in zip(factors, means, strict=True)]
        _run([_Task(_copy, len(mean), (mean, weights)) for mean, weights in arrays])

    def price(self, factor: Factor, draw: Draw, grad: Tensor) -> Tensor:
        """See Kernels."""
        out = torch.empty_like(factor.parameter, requires_grad=False)
        arrays = (_flat(grad, like=out), _flat(factor.hess), _flat(out))
        arguments = (*_name(draw.key, factor.index), *arrays, factor.ess, factor.weight_decay, draw.sign)
        _run([_Task(_price, out.numel(), arguments)])
        return out

    def usable(self, tensors: Sequence[Tensor], largest: float) -> Tensor:
        """See Kernels."""
        count = _run([_Task(_count_unusable, one.numel(), (_flat(one, like=one), largest)) for one in tensors])
        return torch.tensor(count == 0)

    def update(self, moves: Sequence[Move], rule: Rule, draw: Draw, usable: Tensor) -> None:
        """See Kernels."""
        if not usable:
            return
        tasks = []
        for move in moves:
            f, like = move.factor, move.factor.parameter
            grads = _flat(move.grad, like=like)
            estimates = grads if move.estimate is None else _flat(move.estimate, like=like)  # not read if not given
            arrays = (_flat(like), _flat(move.momentum), _flat(f.hess), grads, estimates)
            arguments = (*_name(draw.key, f.index), *arrays, source_of(move, rule), _constants(move, rule, draw))
            tasks.append(_Task(_update, like.numel(), arguments))
        _run(tasks)


def _name(draw: DrawKey, index: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Philox's key, and the upper three words of its counter."""
    name = name_of(draw)
    key = np.array([name.key_low, name.key_high], np.uint32)
    return key, np.array([index, name.step, name.purpose], np.uint32)


def _constants(move: Move, rule: Rule, draw: Draw) -> Array:
    """As float32, made from float64: in float32, 1 - 0.99999 would be off by a thousandth."""
    debias = 1 - rule.beta1 ** float(move.step) if rule.debias else 1.0
    f = move.factor
    sampled = (f.ess, f.weight_decay, draw.sign)
    now = (1 - rule.beta1, 1 - rule.beta2, rule.weight_decay, rule.lr, debias, rule.clip_radius)
    return np.array([*sampled, *now], np.float32)


def _flat(tensor: Tensor, like: Tensor | None = None) -> Array:
    """The tensor's memory as a flat array, in the order of `like`: a view, or a copy where it is laid out otherwise."""
    tensor = tensor if like is None else laid_out(tensor, like)
    array: Array = tensor.detach().as_strided((tensor.numel(),), (1,)).numpy()
    return array


# ------------------------------------------------------------------------------------------------------------ threads


class _Task(NamedTuple):
    """A loop over the blocks of one parameter."""

    loop: Callable[..., int | None]
    num_weights: int
    arguments: tuple[object, ...]
    """What comes after (first, last)."""

    def __call__(self, first: int, last: int) -> int:
        """Run a part of the loop."""
        return self.loop(first, last, *self.arguments) or 0


def _run(tasks: Sequence[_Task]) -> int:
    """Run all loops, an equal share of the blocks on each thread; the sum of what they return."""
    num_blocks = [-(-task.num_weights // BLOCK) for task in tasks]
    total = sum(num_blocks)
    num_threads = max(1, min(torch.get_num_threads(), total // MIN_BLOCKS_A_THREAD))
    bounds = [total * thread // num_threads for thread in range(num_threads + 1)]
    return sum(run_all([_Share(tasks, num_blocks, *bound).run for bound in pairwise(bounds)]))


class _Share(NamedTuple):
    """One thread's part of the tasks: blocks `first` to `last` of all of them in a row."""

    tasks: Sequence[_Task]
    num_blocks: Sequence[int]
    first: int
    last: int

    def run(self) -> int:
        """Run it, and sum up what the loops return."""
        result = offset = 0
        for task, count in zip(self.tasks, self.num_blocks, strict=True):
            first, last = max(self.first - offset, 0), min(self.last - offset, count)
            if first < last:
                result += task(first, last)
            offset += count
        return result
