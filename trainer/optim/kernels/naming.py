"""How the fused kernels name their noise, on every device alike, and what a step makes the Hessian's estimate from.

Numbers come in blocks of 4·LANES. Lane i of block b has the Philox counter (b·LANES + i, parameter, step, purpose)
under the seed as key, where purpose = stream << 28 | sample << 16 | rank; its word j is number j·LANES + i of the
block. So the noise is a pure function of its name, without hash or collision.
"""

from __future__ import annotations

from typing import NamedTuple

from trainer.optim.ivon_rules import Rule
from trainer.optim.kernels import Move
from trainer.optim.noise import DrawKey

LANES = 256
"""Counters worked on side by side."""
BLOCK = 4 * LANES
"""Numbers made at a time: 4 KiB, which stay in a processor's innermost cache."""
PRICE, SQUARED_GRADIENT, GIVEN, FIXED = range(4)
"""Where the Hessian's estimate comes from: the noise of this step, ĝ², an array, or nowhere."""


class Name(NamedTuple):
    """The words of 32 bits that name a draw: Philox's key, and the upper two words of its counter."""

    key_low: int
    key_high: int
    step: int
    purpose: int


def name_of(draw: DrawKey) -> Name:
    """The draw's name, word by word."""
    seed = draw.seed % 2**64
    assert draw.sample < 2**12
    assert draw.rank < 2**16
    return Name(seed % 2**32, seed >> 32, draw.step, draw.stream << 28 | draw.sample << 16 | draw.rank)


def source_of(move: Move, rule: Rule) -> int:
    """PRICE, SQUARED_GRADIENT, GIVEN or FIXED."""
    if rule.fixed_hessian:
        return FIXED
    if move.estimate is not None:
        return GIVEN
    return PRICE if rule.hess_approx == "price" else SQUARED_GRADIENT
