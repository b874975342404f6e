"""Rate limits, by the generic cell rate algorithm: a pure rule of one number a client, and a table of those numbers.

Ours rather than a library's, as `limits` reads the clock itself and starts a timer thread for each store of counts.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MAX_CLIENTS: Final = 10_000
"""Clients that are remembered; then those that have not come for longest are forgotten."""
IPV6_PREFIX: Final = 64
"""A client of IPv6 has that many bits of address, and all that follow to itself."""


@dataclass(frozen=True)
class Rate:
    """So many requests a minute on average, and as many at once."""

    per_minute: int

    @property
    def interval_s(self) -> float:
        """Seconds between two requests of a steady client."""
        return 60 / self.per_minute


@dataclass(frozen=True)
class Verdict:
    """About one request."""

    due: float
    """When the client's requests so far would be used up, had it sent them steadily: to be kept for the next one."""
    wait_s: float
    """0: it may come in. Else the seconds until it would; one that is refused does not count."""


def judge(due: float, now: float, rate: Rate) -> Verdict:
    """A request of a client whose requests so far are used up at `due`."""
    next_due = max(due, now) + rate.interval_s
    wait_s = next_due - now - 60
    return Verdict(due, wait_s) if wait_s > 1e-6 else Verdict(next_due, 0)


class RateLimiter:
    """Counts by client. Used by one thread: the event loop's."""

    def __init__(self, rate: Rate | None, max_clients: int = MAX_CLIENTS) -> None:
        """None: everybody may come as often as he likes."""
        self._rate = rate
        self._max_clients = max_clients
        self._due: OrderedDict[str, float] = OrderedDict()

    def wait_s(self, client: str, now: float) -> float:
        """Count a request at `now` seconds; 0 if it may come in, else how long to wait."""
        if self._rate is None:
            return 0
        verdict = judge(self._due.pop(client, now), now, self._rate)
        self._due[client] = verdict.due
        if len(self._due) > self._max_clients:
            self._due.popitem(last=False)
        return verdict.wait_s


def client_of(address: str | None) -> str:
    """By what a client without a good token is counted."""
    if address is None:
        return "address:unknown"  # a Unix socket: whoever comes that way is one
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return f"address:{address[:64]}"
    if parsed.version == 6 and parsed.ipv4_mapped is None:
        return f"address:{ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False)}"
    return f"address:{parsed}"
