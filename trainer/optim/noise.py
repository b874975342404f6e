"""Normal noise as a pure function of a key: a resumed run needs no generator state, and all ranks can draw the same."""

from __future__ import annotations

import hashlib
import struct
import warnings
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


class Stream(IntEnum):
    """What a draw is for. Draws for different purposes share no noise."""

    TRAINING = 0
    """A training step's weight sample."""
    PREDICTION = 1
    """A weight sample for prediction."""
    LABEL_NOISE = 2
    """A direction for the estimators of label noise."""


class DrawKey(NamedTuple):
    """Names one draw of all weights; with a parameter's index it names that parameter's noise."""

    seed: int
    stream: Stream
    step: int
    """Optimizer step, epoch or running number: what the stream counts."""
    sample: int
    """MC sample (or antithetic pair) within the step."""
    rank: int = 0
    """The rank that draws, where each draws its own; 0 for noise that all ranks share."""


NoiseSource = Callable[[Tensor, DrawKey, int], Tensor]
"""(parameter, draw, index of the parameter) -> e ~ N(0, I) of the parameter's shape, layout, dtype and device."""


PIECE = 2**16
"""Elements worked on at a time on the CPU: two threads share them, and a dozen such tensors stay in their caches."""


def seeded_normal(parameter: Tensor, draw: DrawKey, index: int) -> Tensor:
    """e ~ N(0, I), shaped and laid out like `parameter`: the same for the same key, whatever was drawn before.

    The key is hashed to 64 bits, of which torch's CPU generator takes 32: there, two keys share their noise with
    probability 2⁻³². Noise fills the memory in its own order, so that channels_last weights cost no slow strided fill.
    """
    layout = torch.empty_like(parameter, requires_grad=False)  # dense, strides preserved
    pieces = list(seeded_pieces(parameter, draw, index))
    flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return flat.as_strided(layout.size(), layout.stride())


def seeded_pieces(parameter: Tensor, draw: DrawKey, index: int) -> Iterator[Tensor]:
    """The noise of `seeded_normal`, flat: on the CPU PIECE elements at a time, which are never all in memory."""
    packed = struct.pack("<6q", *draw, index)
    generator = torch.Generator(parameter.device)
    generator.manual_seed(int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little"))
    step = PIECE if parameter.device.type == "cpu" else max(1, parameter.numel())
    for start in range(0, max(1, parameter.numel()), step):
        size = min(step, parameter.numel() - start)
        yield torch.empty(size, dtype=parameter.dtype, device=parameter.device).normal_(generator=generator)


def warn_of_other_noise(saved: str, now: str) -> None:
    """Say so where a run goes on with another generator (`Kernels.noise_name`) than it was saved with."""
    if now != saved:
        warnings.warn(
            f"this run drew its noise from '{saved}' and goes on with '{now}': as good, but not the same numbers",
            stacklevel=4,
        )
