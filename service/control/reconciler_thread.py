"""The thread that takes one look after another, as long as this process leads."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from service.control.leadership import Leadership
from service.control.reconciler import Watch, World, reconcile_once
from service.jobs.records import LeaseLostError

logger = logging.getLogger(__name__)

MIN_GAP_S = 5.0
"""A gap between two looks that is shorter than this is none, however little patience is asked for."""

KEEPER_ENDS_S = 5.0
"""How long the end waits for the thread that keeps the lease."""

MAX_LOOK_S = 600.0
"""The lease is kept for a look no longer than this: one that hangs must not keep others from taking over."""


@dataclass(frozen=True)
class Attention:
    """Since when attempts could make themselves heard without a gap, and when that was last so."""

    since: datetime
    last: datetime


def attentive(before: Attention | None, now: datetime, max_gap_s: float) -> Attention:
    """Attention at `now`. A gap, in which nobody may have heard anything, begins it anew: so does a clock set back."""
    if before is None or not 0 <= (now - before.last).total_seconds() <= max_gap_s:
        return Attention(now, now)
    return Attention(before.since, now)


class Reconciler:
    """Takes looks in one daemon thread: at once when woken, else every `interval_s`; only while this process leads."""

    def __init__(self, world: World, leadership: Leadership, interval_s: float) -> None:
        """Does nothing until `start`."""
        self._world, self._leadership, self._interval_s = world, leadership, interval_s
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._attention: Attention | None = None
        self._last_look = time.monotonic()
        self._look_s = 0.0
        self._looking_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._keeper = threading.Thread(target=self._keep_lease, name="lease", daemon=True)

    def start(self) -> None:
        """Begin to look after the jobs."""
        self._thread.start()
        self._keeper.start()

    def wake(self) -> None:
        """Have it look at once, if it leads."""
        self._woken.set()

    def stop(self, timeout_s: float = 10) -> None:
        """End the thread and let another process lead; what runs on the cluster goes on."""
        self._stopping.set()
        self._woken.set()
        self._thread.join(timeout_s)

    @property
    def last_look_s(self) -> float | None:
        """Seconds since the last look ended, or since it was last seen that another process leads; None if the thread
        does not live."""
        return time.monotonic() - self._last_look if self._thread.is_alive() else None

    @property
    def look_s(self) -> float:
        """Seconds that the last look took."""
        return self._look_s

    @property
    def is_leader(self) -> bool:
        """Whether this process looks after the jobs."""
        return self._leadership.is_held

    def look(self, now: datetime) -> None:
        """One look, if this process leads."""
        fence = self._leadership.claim(now)
        if fence is None:
            self._attention = None
            return
        attention = self._listen(now)
        self._looking_since = time.monotonic()
        try:
            reconcile_once(now, Watch(fence, attention.since), self._world)
        except LeaseLostError:
            logger.warning("another process looks after the jobs by now; this one was too slow")
            self._leadership.lose()
            self._attention = None
        finally:
            self._looking_since = None

    def _listen(self, now: datetime) -> Attention:
        """The database answers, so heartbeats are heard."""
        max_gap_s = max(MIN_GAP_S, self._world.policy.lost_after_s / 2)
        self._attention = attentive(self._attention, now, max_gap_s)
        return self._attention

    def _keep_lease(self) -> None:
        """A look may take longer than the lease lasts: Ray is slow, or gigabytes are held against their checksums.
        Without the lease its writes would be refused, and then those of whoever took over, for the same reason."""
        while not self._stopping.wait(self._leadership.renew_every_s):
            since, now = self._looking_since, datetime.now(UTC)
            if since is None or time.monotonic() - since > MAX_LOOK_S:
                continue
            try:
                if self._leadership.renew(now):
                    self._listen(datetime.now(UTC))
            except Exception:
                logger.exception("the lease could not be renewed amid a look")

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self.look(datetime.now(UTC))
                self._last_look = time.monotonic()
                self._look_s = self._last_look - began
            except Exception:
                logger.exception("the reconciler stumbled; it tries again")
            self._woken.wait(self._interval_s)
            self._woken.clear()
        self._keeper.join(KEEPER_ENDS_S)  # it must not take the lease back
        try:
            self._leadership.release(datetime.now(UTC))
        except Exception:
            logger.exception("the lease could not be given back; it ends by itself")
