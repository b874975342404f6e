"""How long a token is good, as people write it."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

NEVER: Final = "never"
MAX_DAYS: Final = 3660
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_lifetime(text: str) -> timedelta | None:
    """`30m`, `12h`, `90d`, `4w`; None for `never`. ValueError for anything else."""
    if text == NEVER:
        return None
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    lifetime = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else timedelta(0)
    if not timedelta(0) < lifetime <= timedelta(days=MAX_DAYS):
        raise ValueError(f"{text!r} must be never or like 30m, 12h, 90d or 4w, of at most {MAX_DAYS} days")
    return lifetime
