"""BatchNorm's running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Training passes inside normalise by their batch as ever, but leave BatchNorm's running statistics alone.

    Not by momentum 0: that would still count batches, and 0 times a statistic that is NaN is NaN.
    """
    tracking = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
