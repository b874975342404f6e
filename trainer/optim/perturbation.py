"""Moving the weights for a while, and the one norm over all of them that such moves are measured by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SMALLEST_NORM = 1e-12
"""Added to a norm that is divided by, so that nothing is divided by zero."""


def norm_of(tensors: list[Tensor]) -> Tensor:
    """‖·‖₂ of all tensors as one vector: a scalar on their device, which is not finite if one element is not."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm


def divided_by_norm(tensors: list[Tensor], norm: Tensor) -> list[Tensor]:
    """tensors/(norm + 1e-12); NaN throughout if the norm is not finite, where one bad element could stay unseen."""
    factor = torch.where(norm.isfinite(), 1 / (norm + SMALLEST_NORM), torch.nan)
    return list(torch._foreach_mul(tensors, factor))


@contextmanager
def displaced(parameters: list[Tensor], offsets: list[Tensor]) -> Iterator[None]:
    """The parameters are moved by `offsets` inside; afterwards, whatever happened, they are as before, bit for bit.

    Memory: one copy of the parameters. Their storage and memory format don't change.
    """
    if not parameters:
        yield
        return
    with torch.no_grad():
        originals = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            torch._foreach_add_(parameters, offsets)
        torch.clear_autocast_cache()  # an autocast around this would go on with bf16 copies of other weights
        del offsets  # if nobody else holds it, its memory serves the passes inside
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, originals)
        torch.clear_autocast_cache()
