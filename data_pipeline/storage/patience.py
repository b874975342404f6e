"""How long a remote storage is asked again before it counts as away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long a remote storage is asked again, with exponential backoff, before it counts as away."""

    retry_s: float = 180.0
    """Seconds from the first try of a request; after them no other try begins."""
    first_wait_s: float = 0.1
    """Seconds before the second try; then twice as long each time, up to 15, less a random part."""
    silence_s: float = 20.0
    """A connection that sends nothing for so many seconds is cut, and what is missing is asked for again."""


USUAL_PATIENCE = Patience()
AT_A_TERMINAL = Patience(retry_s=15, silence_s=10)
"""Somebody waits for the answer."""
