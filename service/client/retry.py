"""Whether and when a request that failed is sent again: pure decisions, and a thin count of one request's failures.

A request is sent again if that cannot do anything twice: because it never arrived, because the service turned it away
before doing anything (429), or because it may be repeated (reading, or bearing an Idempotency-Key) and what went wrong
passes: a broken connection, 502, 503, 504. What the service refuses for good is never sent again.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final, Self

import httpx
import httpx_sse

from service.client.errors import GATEWAY_STATUSES

Outcome = httpx.Response | httpx.RequestError
"""What became of a request."""

_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_HOPELESS: Final = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.DecodingError, httpx_sse.SSEError)
"""Faults of the request or of the server, which do not pass."""


@dataclass(frozen=True)
class Retry:
    """How patient a client is."""

    max_s: float = 30.0
    """No request is sent again later than this after it failed first; 0: none is sent again."""
    connect_max_s: float = 30.0
    """The same where nobody listens at all: less, if an answer that says so is wanted soon."""
    stream_max_s: float = 120.0
    """Seconds that a stream which was cut off tries to get the service back."""
    first_wait_s: float = 0.5
    """Longest wait before the second try; it doubles with each further one."""
    max_wait_s: float = 8.0
    """Longest wait between two tries, unless the service asks for a longer one."""


def may_repeat(outcome: Outcome, *, repeatable: bool) -> bool:
    """Whether to send the request again that became `outcome`; `repeatable`: doing it twice is doing it once."""
    if isinstance(outcome, httpx.Response):
        passes = outcome.status_code in GATEWAY_STATUSES and repeatable
        return passes or outcome.status_code == HTTPStatus.TOO_MANY_REQUESTS
    if isinstance(outcome, _HOPELESS):
        return False
    return repeatable or isinstance(outcome, _NEVER_SENT)


def wait_s(retry: Retry, num_failures: int, asked_s: float | None, jitter: float) -> float:
    """Seconds until the next try after `num_failures` of them; `jitter` from [0, 1) parts clients that failed together.

    From half the backoff to all of it, and never sooner than the service asked for, but up to `first_wait_s` later.
    """
    # 2.0 ** 1024 would overflow; no backoff needs more than 2 ** 60 of anything.
    backoff_s = min(retry.max_wait_s, retry.first_wait_s * 2.0 ** min(num_failures - 1, 60)) * (1 + jitter) / 2
    return backoff_s if asked_s is None else max(backoff_s, asked_s + retry.first_wait_s * jitter)


def asked_wait_s(outcome: Outcome, now: datetime) -> float | None:
    """What `Retry-After` asks for, in seconds or as a date; None without one, or with one that is neither."""
    if not isinstance(outcome, httpx.Response) or (text := outcome.headers.get("Retry-After", "").strip()) == "":
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds())


@dataclass
class Patience:
    """Counts the failures of one request, or of one stream since it last brought anything."""

    retry: Retry
    max_s: float
    """No next try later than this after the first failure."""
    connect_max_s: float
    """Nor later than this where nobody listens."""
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    num_failures: int = 0
    failed_at: float = 0.0
    """When it failed first."""

    @classmethod
    def with_request(cls, retry: Retry) -> Self:
        """Of a new request, or of a stream that has brought nothing yet."""
        return cls(retry, retry.max_s, min(retry.max_s, retry.connect_max_s))

    def renew(self) -> None:
        """The stream brought something: the service is known to be there, and worth waiting for."""
        self.max_s = self.connect_max_s = self.retry.stream_max_s
        self.num_failures = 0

    def wait_s(self, outcome: Outcome, *, repeatable: bool) -> float | None:
        """Seconds until the next try; None if there is none: it did not fail, or did so for good."""
        if not may_repeat(outcome, repeatable=repeatable):
            return None
        if self.num_failures == 0:
            self.failed_at = self.clock()
        self.num_failures += 1
        pause_s = wait_s(self.retry, self.num_failures, asked_wait_s(outcome, datetime.now(UTC)), self.jitter())
        max_s = self.connect_max_s if isinstance(outcome, _NEVER_SENT) else self.max_s
        return pause_s if self.clock() - self.failed_at + pause_s <= max_s else None
