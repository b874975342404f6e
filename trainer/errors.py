"""What ends a training.

ValueError
└── SpecRejectedError       the job cannot be trained here: found out before its first step
RuntimeError
├── TrainingFailedError     trying again would end the same way
│   └── DivergedError       weights or predictions are no longer finite
└── AbortedError            the service said so; nothing is wrong
Exception
└── StopAskedError          ends no training by itself: what is done at an epoch's end is given up, to be done later
"""

from __future__ import annotations


class SpecRejectedError(ValueError):
    """The job cannot be trained here; the message names field, value and what is allowed."""


class AbortedError(RuntimeError):
    """The service asked this attempt to end at once, without a checkpoint or a result."""


class StopAskedError(Exception):
    """The ranks agreed to stop amid what is done at an epoch's end."""


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
