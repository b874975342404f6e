"""Leadership: of all processes on one database, one looks after the jobs. It holds a lease, which it renews.

The fence it gets with the lease goes into each of its writes (service.store.leases), so that a leader which slept
through the lease's end changes nothing any more; what it may still hand to the cluster bears its successor's ids.
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

from service.jobs.records import Fence
from service.store.leases import Leases

LEASE = "reconciler"


class Leadership:
    """One process's claim to lead."""

    def __init__(self, leases: Leases, holder: str, ttl_s: float) -> None:
        """`holder` names this process and no other, not even an earlier one."""
        self._leases, self._holder, self._ttl_s = leases, holder, ttl_s
        self._fence: Fence | None = None
        self._renewed_at: datetime | None = None
        self._lock = threading.Lock()

    @property
    def is_held(self) -> bool:
        """Whether this process led when it last asked."""
        return self._fence is not None

    def claim(self, now: datetime) -> Fence | None:
        """Take the lease, or renew it when a third of its time is over; None while another process leads."""
        with self._lock:
            if self._fence is None or not self._is_fresh(now):
                self._fence = None  # should the database not answer, nobody knows who leads
                self._fence = self._leases.acquire(LEASE, self._holder, now, self._ttl_s)
                self._renewed_at = now
            return self._fence

    def renew(self, now: datetime) -> bool:
        """Renew the lease if it is held and a third of its time is over; whether the database has said so."""
        with self._lock:
            if self._fence is None or self._is_fresh(now):
                return False
            self._fence = self._leases.acquire(LEASE, self._holder, now, self._ttl_s)
            self._renewed_at = now
            return self._fence is not None

    @property
    def renew_every_s(self) -> float:
        """How often a lease that is held has to be renewed."""
        return self._ttl_s / 3

    def lose(self) -> None:
        """A write was refused: another process leads by now."""
        with self._lock:
            self._fence = None

    def release(self, now: datetime) -> None:
        """Let another process lead at once."""
        with self._lock:
            if self._fence is not None:
                self._leases.release(self._fence, now)
                self._fence = None

    def _is_fresh(self, now: datetime) -> bool:
        renewed_at = self._renewed_at
        return renewed_at is not None and renewed_at <= now < renewed_at + timedelta(seconds=self.renew_every_s)
