"""IVON's work on dense float32 weights on one CUDA device, in Triton: one launch for all weights, without a wait.

What runs there is in cuda_device.py; here is what tells it where the weights are. Addresses and constants of all
tensors go to the device as one table of integers, which is kept as long as they stay the same. Bytes moved per weight:
16 to sample, 8 to restore, 4 to look for NaN, 28 to update.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from trainer.optim.factor import Factor
from trainer.optim.ivon_rules import Rule
from trainer.optim.kernels import Draw, Move, cuda_device
from trainer.optim.kernels.naming import BLOCK, GIVEN, LANES, name_of, source_of
from trainer.optim.layout import is_dense, laid_out
from trainer.optim.noise import DrawKey

NUM_BLOCKS = 2
"""Blocks of noise a program: 2048 weights, 16 a thread."""
_OPTIONS = {"num_warps": 2 * NUM_BLOCKS, "enable_fp_fusion": True}
"""A warp takes 128 counters, 4 a thread: 16 bytes of each array at a time."""
_CHUNK = NUM_BLOCKS * BLOCK
_NUM_TABLES = 32
"""Tables kept: a few a model, some 10 KB each."""


class CUDAKernels:
    """Kernels compiled for this GPU."""

    noise_name = "philox"

    def normal(self, parameter: Tensor, draw: DrawKey, index: int) -> Tensor:
        """See Kernels."""
        noise = torch.empty_like(parameter, requires_grad=False)
        size = noise.numel()
        arguments = (noise, size, _count(noise.device), index, *_words(draw))
        _launch(cuda_device.normal, -(-size // _CHUNK), noise.device, arguments)
        return noise

    def perturb(self, factors: Sequence[Factor], means: Sequence[Tensor], draw: Draw) -> None:
        """See Kernels. It is one launch, so that an error in making it leaves all weights as they are."""
        rows = [
            (*_described(f), f.parameter.data_ptr(), f.hess.data_ptr(), mean.data_ptr())
            for f, mean in zip(factors, means, strict=True)
        ]
        if rows:
            device = means[0].device
            _launch_on_all(cuda_device.perturb, rows, device, (_count(device), draw.sign, *_words(draw.key)))

    def restore(self, factors: Sequence[Factor], means: Sequence[Tensor]) -> None:
        """See Kernels. torch's own copy of many tensors is one launch too."""
        if means:
            torch._foreach_copy_([factor.parameter for factor in factors], list(means))

    def price(self, factor: Factor, draw: Draw, grad: Tensor) -> Tensor:
        """See Kernels."""
        out = torch.empty_like(factor.parameter, requires_grad=False)
        size = out.numel()
        arrays = (laid_out(grad, like=out), factor.hess, out, size, _count(out.device))
        constants = (float(factor.ess), float(factor.weight_decay), draw.sign)
        arguments = (*arrays, factor.index, *constants, *_words(draw.key))
        _launch(cuda_device.price, -(-size // _CHUNK), out.device, arguments)
        return out

    def usable(self, tensors: Sequence[Tensor], largest: float) -> Tensor:
        """See Kernels."""
        dense = [one if one.dtype == torch.float32 and is_dense(one) else one.float().contiguous() for one in tensors]
        flag = torch.ones((), dtype=torch.bool, device=tensors[0].device)
        rows = [(one.numel(), one.data_ptr()) for one in dense]
        _launch_on_all(cuda_device.usable, rows, flag.device, (flag.view(torch.uint8), largest))
        return flag

    def update(self, moves: Sequence[Move], rule: Rule, draw: Draw, usable: Tensor) -> None:
        """See Kernels."""
        by_source: dict[int, list[Move]] = {}  # mostly one
        for move in moves:
            by_source.setdefault(source_of(move, rule), []).append(move)
        for source, alike in by_source.items():
            _update(alike, source, rule, draw, usable)


def _update(moves: Sequence[Move], source: int, rule: Rule, draw: Draw, usable: Tensor) -> None:
    rows, kept = [], []  # what is copied into another layout lives until the launch
    for move in moves:
        f, like = move.factor, move.factor.parameter
        grad = laid_out(move.grad, like=like)
        estimate = laid_out(move.estimate, like=like) if source == GIVEN and move.estimate is not None else None
        kept += [grad, estimate]
        state = (like.data_ptr(), f.hess.data_ptr(), move.momentum.data_ptr())
        given = 0 if estimate is None else estimate.data_ptr()
        rows.append((*_described(f), *state, grad.data_ptr(), given, move.step.data_ptr()))
    # As float32, made from float64: in float32, 1 - 0.99999 would be off by a thousandth.
    log2_beta1 = math.log2(max(rule.beta1, sys.float_info.min))
    constants = (1 - rule.beta1, log2_beta1, 1 - rule.beta2, rule.weight_decay, rule.lr, rule.clip_radius)
    device = moves[0].momentum.device
    arguments = (usable.view(torch.uint8), _count(device), draw.sign, *map(float, constants), *_words(draw.key))
    _launch_on_all(cuda_device.update, rows, device, (*arguments, source, rule.debias))


# ------------------------------------------------------------------------------------------------------------- launches


def _launch(kernel: Any, num_programs: int, device: torch.device, arguments: tuple[object, ...]) -> None:
    """Run a Triton kernel on the tensors' own device, which need not be the current one."""
    if num_programs:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # else: Triton's interpreter
            kernel[(num_programs,)](*arguments, NUM_BLOCKS, **_OPTIONS)


def _launch_on_all(
    kernel: Any, rows: Sequence[tuple[int, ...]], device: torch.device, arguments: tuple[object, ...]
) -> None:
    """Run a kernel on the tensors that `rows` describe, each beginning with its size."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    places = _places(tuple(row[0] for row in rows), device, stream)
    _launch(kernel, len(places), device, (places, _table(tuple(rows), device, stream), *arguments))


@lru_cache(_NUM_TABLES)
def _places(sizes: tuple[int, ...], device: torch.device, stream: int) -> Tensor:  # noqa: ARG001 (as in _table)
    """(tensor, chunk of it) of each program, of shape (programs, 2)."""
    chunks = torch.tensor([-(-size // _CHUNK) for size in sizes])
    tensor = torch.repeat_interleave(torch.arange(len(sizes)), chunks)
    first = torch.repeat_interleave(chunks.cumsum(0) - chunks, chunks)
    return _to_device(torch.stack([tensor, torch.arange(len(tensor)) - first], dim=1).int(), device)


@lru_cache(_NUM_TABLES)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device, stream: int) -> Tensor:  # noqa: ARG001
    """The rows as one array.

    A table serves the stream that it was copied on: another could read it before it is there.
    """
    values = array("q", chain.from_iterable(rows))
    return _to_device(torch.frombuffer(values, dtype=torch.int64), device)


@lru_cache
def _count(device: torch.device) -> Tensor:
    """0, 1, 2, … for the counters of a chunk."""
    return torch.arange(NUM_BLOCKS * LANES, dtype=torch.int32).to(device)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that the host doesn't wait for: torch keeps pinned memory from new use until the copy is made."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


# --------------------------------------------------------------------------------------------------------- descriptions


def _described(factor: Factor) -> tuple[int, int, int]:
    """The first columns of a row: size, index, and λ with δ."""
    return factor.parameter.numel(), factor.index, _packed(factor.ess, factor.weight_decay)


@lru_cache
def _packed(ess: float, weight_decay: float) -> int:
    """Two float32 in one int64, the first one above."""
    packed: int = struct.unpack("<q", struct.pack("<ff", weight_decay, ess))[0]
    return packed


def _words(draw: DrawKey) -> tuple[int, ...]:
    """The draw's name in signed words: Triton makes code anew for whole numbers of more than 31 bits."""
    return tuple(word - 2**32 if word >= 2**31 else word for word in name_of(draw))
