"""The order in which tensors lie in memory: what walks several of them side by side needs it to be the same."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory: contiguous in torch's order or channels last."""
    return tensor.is_contiguous() or (
        (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
        or (tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d))
    )


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor with its memory in the order and type of `like`: itself, or a copy where they differ."""
    if tensor.dtype == like.dtype and _is_in_order_of(tensor, like):
        return tensor
    return torch.empty_like(like, requires_grad=False).copy_(tensor)


def follow(tensor: Tensor, like: Tensor) -> None:
    """Bring the tensor's memory into the order of `like`, as a model's move to channels_last asks of what goes with it.

    In place: whoever holds the tensor sees it.
    """
    if not _is_in_order_of(tensor, like) and is_dense(like):
        tensor.data = laid_out(tensor, like)


def _is_in_order_of(tensor: Tensor, like: Tensor) -> bool:
    ours, theirs = tensor.stride(), like.stride()
    if ours == theirs:
        return True
    return all(size == 1 or a == b for size, a, b in zip(like.shape, ours, theirs, strict=True))
