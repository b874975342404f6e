"""Addresses to listen on: who reaches them. Imports nothing heavy: `hush serve` asks before anything else."""

from __future__ import annotations

import contextlib
import ipaddress


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
