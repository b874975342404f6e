"""The metrics that are asked for at each scrape: of the database, the reconciler, webhooks and followers."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from service.control.reconciler_thread import Reconciler
from service.jobs.states import WAITING_STATES, JobState
from service.store.figures import Figures

logger = logging.getLogger(__name__)

_Family = TypeVar("_Family", GaugeMetricFamily, CounterMetricFamily)

FRESH_S = 5.0
"""For so long the database is not asked again: anybody may scrape."""


@dataclass(frozen=True)
class Observed:
    """The parts that are looked at."""

    figures: Callable[[], Figures]
    reconciler: Reconciler
    deliveries: Callable[[], Counter[str]]
    """Tries of this process, by how they went."""
    num_followers: Callable[[], int]


class ServiceCollector(Collector):
    """Asks the service's parts. A database that is away costs the figures it has, and nothing else."""

    def __init__(self, observed: Observed) -> None:
        """Asks nobody before it is scraped."""
        self._observed = observed
        self._figures: Figures | None = None
        self._read_at = -FRESH_S
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        figures = self._fresh_figures()
        yield _gauge("hush_database_up", "Whether the database answers.", figures is not None)
        if figures is not None:
            yield from _of_database(figures, datetime.now(UTC))
        yield from self._of_reconciler()
        deliveries = CounterMetricFamily("hush_webhook_tries", "Deliveries tried, by how it went.", labels=["outcome"])
        for outcome, count in sorted(self._observed.deliveries().items()):
            deliveries.add_metric([outcome], count)
        yield deliveries
        followers = self._observed.num_followers()
        yield _gauge("hush_event_followers", "Clients that follow a job's events now.", followers)

    def _of_reconciler(self) -> Iterator[Metric]:
        reconciler = self._observed.reconciler
        yield _gauge("hush_leader", "Whether this process looks after the jobs.", reconciler.is_leader)
        lag_s = reconciler.last_look_s
        if lag_s is not None:
            yield _gauge("hush_reconcile_lag_seconds", "Seconds since the reconciler's last look ended.", lag_s)
        yield _gauge("hush_reconcile_look_seconds", "Seconds that its last look took.", reconciler.look_s)

    def _fresh_figures(self) -> Figures | None:
        with self._lock:
            if time.monotonic() - self._read_at >= FRESH_S:
                self._figures, self._read_at = self._read(), time.monotonic()
            return self._figures

    def _read(self) -> Figures | None:
        try:
            return self._observed.figures()
        except SQLAlchemyError as error:
            logger.warning("the database does not answer for metrics: %s", error)
            return None


def _of_database(figures: Figures, now: datetime) -> Iterator[Metric]:
    known = {str(state): figures.jobs.get(state, 0) for state in JobState}
    yield _labelled(GaugeMetricFamily("hush_jobs", "Jobs, by state.", labels=["state"]), known)
    ended = CounterMetricFamily("hush_attempts", "Attempts that have ended, by reason.", labels=["reason"])
    yield _labelled(ended, figures.attempts)
    waiting = sum(known[state] for state in WAITING_STATES)
    yield _gauge("hush_queue_jobs", "Jobs that wait for their turn.", waiting)
    age_s = _age_s(figures.oldest_waiting_since, now)
    yield _gauge("hush_queue_oldest_seconds", "For how long the first of them has waited.", age_s)
    age_s = _age_s(figures.oldest_heartbeat_at, now)
    yield _gauge("hush_heartbeat_oldest_seconds", "Age of the oldest last heartbeat of a running job.", age_s)
    pending = figures.num_pending_deliveries
    yield _gauge("hush_webhook_pending", "Deliveries to webhooks that are not done or given up.", pending)


def _age_s(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())


def _gauge(name: str, doc: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, doc, value=value)


def _labelled(family: _Family, values: Mapping[str, float]) -> _Family:
    for label, value in values.items():
        family.add_metric([label], value)
    return family
