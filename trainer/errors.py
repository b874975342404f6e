"""What ends a training for good.

RuntimeError
└── TrainingFailedError     trying again would end the same way
    └── DivergedError       the weights are no longer finite
"""

from __future__ import annotations


class TrainingFailedError(RuntimeError):
    """Training cannot go on, and a restart from the last checkpoint would end the same way."""


class DivergedError(TrainingFailedError):
    """The weights are no longer finite numbers."""
