"""When a delivery is tried again, and when it is given up. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

DELAYS_S: Final = (5, 30, 120, 600, 1_800, 7_200, 21_600)
"""After the first, second, … failed try; after the eighth there is none."""
MAX_TRIES: Final = len(DELAYS_S) + 1
JITTER: Final = 0.2
"""A delay is longer by up to this share, so that what failed together does not come back together."""


@dataclass(frozen=True)
class Outcome:
    """What one more try has made of a delivery."""

    num_tries: int
    delivered_at: datetime | None = None
    next_try_at: datetime | None = None
    """None: it is delivered, or given up."""
    error: str | None = None


def outcome(num_tries_before: int, error: str | None, now: datetime, random: float) -> Outcome:
    """What to keep of a try that ended with `error`, or none; `random` lies in [0, 1)."""
    num_tries = num_tries_before + 1
    if error is None:
        return Outcome(num_tries, delivered_at=now)
    if num_tries >= MAX_TRIES:
        return Outcome(num_tries, error=error)
    delay_s = DELAYS_S[num_tries - 1] * (1 + JITTER * random)
    return Outcome(num_tries, next_try_at=now + timedelta(seconds=delay_s), error=error)
