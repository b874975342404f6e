"""Ids of jobs, studies and the rest: 26 characters that sort by time, fit into URLs and cannot be guessed."""

from __future__ import annotations

import re
from datetime import datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_ID = re.compile(rf"[{_ALPHABET}]{{26}}")

_TIME_BITS = 48
_RANDOM_BITS = 80


def new_id(now: datetime, random_bits: int) -> str:
    """A ULID in lower case: 48 bits of milliseconds since 1970, then `random_bits` (80 of them)."""
    assert 0 <= random_bits < 1 << _RANDOM_BITS
    value = (int(now.timestamp() * 1000) & ((1 << _TIME_BITS) - 1)) << _RANDOM_BITS | random_bits
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def is_id(text: str) -> bool:
    """Whether `text` could be an id; anything else never reaches the database or a path."""
    return _ID.fullmatch(text) is not None


def submission_id(job_id: str, attempt: int) -> str:
    """Name of an attempt on the cluster."""
    return f"job-{job_id}-a{attempt}"
