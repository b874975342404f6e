"""What ends a training for good.

RuntimeError
└── TrainingFailedError     trying again would end the same way
    └── DivergedError       weights or predictions are no longer finite
"""

from __future__ import annotations


class TrainingFailedError(RuntimeError):
    """Training cannot go on, and a restart from the last checkpoint would end the same way."""


class DivergedError(TrainingFailedError):
    """Weights or predictions are no longer finite numbers."""


def diverged(what: str, lr: float) -> DivergedError:
    """The error, with what to do about it. (A constructor of its own would keep Ray from unpickling it.)"""
    return DivergedError(
        f"training has diverged: {what} are not finite any more. method.lr = {lr:g} is probably too large;"
        " schedule.warmup_epochs may help too"
    )
