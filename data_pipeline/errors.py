"""What can go wrong with data.

ValueError
└── BadImageError          one example cannot be read or decoded; the loader counts, lists and skips it
RuntimeError
└── QuarantineLimitError   more examples are unreadable than the job tolerates
OSError
└── StorageError           a storage is away or refuses us; that says nothing of the data: nothing is skipped
"""

from __future__ import annotations


class BadImageError(ValueError):
    """One example's bytes cannot be read, or are no picture. `str(error)` is the reason, for people."""


class QuarantineLimitError(RuntimeError):
    """Too many unreadable examples: the message names count, limit and the first few."""


class StorageError(OSError):
    """A storage did not answer, however often it was asked, or refused. Starting again later may help."""
