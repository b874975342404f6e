"""Which part of a picture is used: random resized crops, centre crops, flips. Pure; drawn before decoding.

Training: area 8% to 100% of the picture, aspect ratio 3/4 to 4/3 log-uniform, ten tries, else the largest centred box
within these ratios (Szegedy et al. 2015), then flipped in half the cases. Evaluation: the centred square of 224/256 of
the shorter side: the same as resizing the shorter side to 256/224 of the image size and cropping the centre.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

AREA = (0.08, 1.0)
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
TRIES = 10
NUM_DRAWS = 2 * TRIES + 3
"""Uniform numbers an example: area and ratio of each try, then top, left and flip."""
CENTRE = 224 / 256


class Box(NamedTuple):
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draws_for(seed: int, epoch: int, example_id: str) -> NDArray[np.float64]:
    """NUM_DRAWS uniforms in [0, 1) that depend on job seed, epoch and example alone: not on rank, thread or batch."""
    # A hash of any length is random bits too, and there sooner than a generator that is made to be used once.
    hashed = hashlib.shake_128(f"augment/{seed}/{epoch}/{example_id}".encode()).digest(8 * NUM_DRAWS)
    return (np.frombuffer(hashed, dtype="<u8") >> np.uint64(11)) * np.float64(2.0**-53)


def random_box(draws: NDArray[np.float64], height: int, width: int) -> Box:
    """Random resized crop of a picture of this size."""
    *tries, top_draw, left_draw, _ = draws.tolist()
    for area_draw, ratio_draw in zip(tries[::2], tries[1::2], strict=True):
        area = height * width * (AREA[0] + area_draw * (AREA[1] - AREA[0]))
        ratio = math.exp(LOG_RATIO[0] + ratio_draw * (LOG_RATIO[1] - LOG_RATIO[0]))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(top_draw * (height - box_height + 1))
            left = int(left_draw * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    return _largest_within_ratios(height, width)


def is_flipped(draws: NDArray[np.float64]) -> bool:
    """Whether the picture is mirrored left to right."""
    return bool(draws[-1] < 0.5)


def centre_box(height: int, width: int, image_size: int) -> Box:
    """Evaluation crop; pictures too small to be shrunk to the image size are used up to their shorter side."""
    shorter = min(height, width)
    side = round(shorter * CENTRE) if shorter * CENTRE >= image_size else shorter
    return Box((height - side) // 2, (width - side) // 2, side, side)


def _largest_within_ratios(height: int, width: int) -> Box:
    lowest, highest = math.exp(LOG_RATIO[0]), math.exp(LOG_RATIO[1])
    box_height = min(height, max(1, round(width / lowest)))
    box_width = min(width, max(1, round(height * highest)))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
