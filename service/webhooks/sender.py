"""Sends what is due, in a thread of its own, on one replica at a time: the one that holds the lease `webhooks`.

A delivery may arrive twice, when a replica dies between sending it and keeping that it did; its `webhook-id` is the
same then. One at a time goes to each webhook, so one whose server hangs keeps no other waiting.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from service.control.failpoints import Failpoint, failpoint
from service.jobs.records import EventRecord, Fence, JobRecord, LeaseLostError
from service.store.leases import Leases
from service.store.webhooks import DueDelivery, Webhooks
from service.telemetry.log_fields import bind
from service.webhooks.post import DeliveryError, Poster
from service.webhooks.schedule import Outcome, outcome
from service.webhooks.signature import signed_headers

logger = logging.getLogger(__name__)

LEASE = "webhooks"
LEASE_S = 45.0
"""Longer than one delivery takes, renewed long before."""
LOOK_S = 1.0
NUM_SENDERS = 32
NUM_PER_TENANT = 8
"""Webhooks of one tenant that are told at a time: whose servers all hang keeps no other tenant waiting."""


@dataclass(frozen=True)
class Outbox:
    """What a sender works with."""

    webhooks: Webhooks
    leases: Leases
    poster: Poster
    body: Callable[[EventRecord, JobRecord], bytes]
    """What a webhook is told of an event."""


class WebhookSender:
    """The sender of one process."""

    def __init__(self, outbox: Outbox, holder: str, random: Callable[[], float]) -> None:
        """Does nothing until `start`, or `look`. `holder` names this process, and no other;
        `random` draws from [0, 1)."""
        self._outbox = outbox
        self._holder = holder
        self._random = random
        self._fence: Fence | None = None
        self._renew_at: datetime | None = None
        self._busy: dict[str, str] = {}
        """Webhooks that are being told, with their tenants."""
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(NUM_SENDERS, thread_name_prefix="webhook")
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    @property
    def counts(self) -> Counter[str]:
        """Tries of this process: `delivered`, `failed` and to be tried again, `given_up`."""
        with self._lock:
            return self._counts.copy()

    @property
    def is_busy(self) -> bool:
        """Whether something is being sent."""
        return bool(self._busy)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Let what is being sent come to its end, and hand the lease on."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        if self._fence is not None:
            self._outbox.leases.release(self._fence, datetime.now(UTC))

    def look(self, now: datetime) -> None:
        """Begin to send what is due, if it is ours to send."""
        with self._lock:
            busy = dict(self._busy)
        due = self._outbox.webhooks.due(now, busy, NUM_SENDERS - len(busy), NUM_PER_TENANT)
        fence = self._hold(now) if due or busy else None
        if fence is None:
            return
        for delivery in due:
            with self._lock:
                self._busy[delivery.webhook.id] = delivery.webhook.tenant
            self._pool.submit(self._deliver, delivery, fence)

    def _hold(self, now: datetime) -> Fence | None:
        if self._fence is None or self._renew_at is None or now >= self._renew_at:
            self._fence = self._outbox.leases.acquire(LEASE, self._holder, now, LEASE_S)
            self._renew_at = now + timedelta(seconds=LEASE_S / 3)
        return self._fence

    def _deliver(self, delivery: DueDelivery, fence: Fence) -> None:
        bind({"job_id": delivery.job.id, "webhook_id": delivery.webhook.id})  # this thread's, until its next delivery
        try:
            error = self._send(delivery, datetime.now(UTC))
            failpoint(Failpoint.WEBHOOK_AFTER_SEND)
            tried = outcome(delivery.num_tries, error, datetime.now(UTC), self._random())
            self._outbox.webhooks.record(delivery, tried, fence)
            self._tell(delivery, tried)
            self._woken.set()  # not after a fault of ours, which would be met again at once, and for ever
        except LeaseLostError:
            self._renew_at = None
            logger.warning("another process sends webhooks by now; delivery %d may arrive twice", delivery.id)
        except Exception:
            logger.exception("delivery %d could not be attended to; it is tried again", delivery.id)
        finally:
            with self._lock:
                del self._busy[delivery.webhook.id]

    def _send(self, delivery: DueDelivery, now: datetime) -> str | None:
        """What went wrong, or None."""
        body = self._outbox.body(delivery.event, delivery.job)
        headers = signed_headers(delivery.webhook.secret, f"msg_{delivery.id}", int(now.timestamp()), body)
        try:
            self._outbox.poster.post(delivery.webhook.url, {"Content-Type": "application/json", **headers}, body)
        except DeliveryError as error:
            return str(error)
        return None

    def _tell(self, delivery: DueDelivery, tried: Outcome) -> None:
        kind = "delivered" if tried.error is None else "failed" if tried.next_try_at is not None else "given_up"
        with self._lock:
            self._counts[kind] += 1
        logger.info(
            "webhook %s, job %s, event %d, try %d: %s",
            delivery.webhook.id,
            delivery.job.id,
            delivery.event.id,
            tried.num_tries,
            kind if tried.error is None else f"{kind}: {tried.error}",
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                self.look(datetime.now(UTC))
            except Exception:
                logger.exception("the sender of webhooks stumbled; it tries again")
            self._woken.wait(LOOK_S)
