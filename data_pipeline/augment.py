"""A batch of bytes -> the model's input, on the device: flipped, scaled, normalised."""

from __future__ import annotations

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
    mean_C = torch.tensor(IMAGENET_MEAN, device=device)
    std_C = torch.tensor(IMAGENET_STD, device=device)
    # In memory BHWC is what channels_last means: the permuted view needs no copy.
    images_BCHW = ((flipped_BHWC.float() / 255 - mean_C) / std_C).permute(0, 3, 1, 2)
    return images_BCHW.contiguous(memory_format=torch.channels_last)
