"""torch's SGD and AdamW, without the seconds that their first step costs.

The wrapper around their `step` imports torch's compiler (4 to 6 CPU-seconds a process) to tell it where to break a
graph. Nothing here is compiled: the step below it is called as it is, without gradients. If a later torch wraps in
another way, its own step is used: slower at first, not wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _unwrapped(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step as it is written, without what torch has put around it."""
    written = getattr(step, "__wrapped__", None)
    return step if written is None else torch.no_grad()(written)


class SGD(torch.optim.SGD):
    """torch's SGD."""

    step = _unwrapped(torch.optim.SGD.step)


class AdamW(torch.optim.AdamW):
    """torch's AdamW."""

    step = _unwrapped(torch.optim.AdamW.step)
