"""A batch of bytes -> the model's input, on the device: flipped, scaled, normalised."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_model_input(images_BHWC: Tensor, flip_B: Tensor, device: torch.device | str) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in channels_last, (x/255 - mean) / std; rows of `flip_B` mirrored.

    Bytes are what travels to the device: float32 would be four times as much.
    """
    images_BHWC = images_BHWC.to(device, non_blocking=True)
    flip_B111 = flip_B.to(device, non_blocking=True).view(-1, 1, 1, 1)
    flipped_BHWC = torch.where(flip_B111, images_BHWC.flip(2), images_BHWC)
    mean_WC, std_WC = _statistics(images_BHWC.shape[2], images_BHWC.device)
    # On the CPU memory costs more than arithmetic, so it is done in place; and a row of all channels is long enough for
    # vector instructions, where three numbers are not. In memory BHWC is what channels_last means: no copy.
    values_BHWC = flipped_BHWC.float().div_(255)
    values_BHWC.flatten(2).sub_(mean_WC).div_(std_WC)
    return values_BHWC.permute(0, 3, 1, 2)


@lru_cache
def _statistics(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """mean_WC, std_WC of a row. Kept: sending them would wait for all that a CUDA device has yet to do."""
    mean_C, std_C = torch.tensor((IMAGENET_MEAN, IMAGENET_STD), device=device)
    return mean_C.repeat(width), std_C.repeat(width)
