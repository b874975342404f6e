"""Prometheus metrics of this process, and of the database that it shares with its replicas.

What a process counts (requests, heartbeats, deliveries) is its own: sum it over replicas. What the database says (jobs,
attempts, queue) is the same at each: take the largest.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The metrics of one app."""

    def __init__(self) -> None:
        """A registry of its own: there may be several apps in a process."""
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._requests = Counter(
            "hush_http_requests", "HTTP requests.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "hush_http_request_duration_seconds",
            "Seconds from a request to the end of its answer.",
            ("method", "route"),
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._heartbeats = Counter("hush_heartbeats", "Heartbeats that were taken in.", registry=self._registry)

    def add(self, collector: Collector) -> None:
        """Ask this one, too, at each scrape."""
        self._registry.register(collector)

    def saw_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. `route` is a template, and a made-up method is none of the labels."""
        method = method if method in METHODS else "(other)"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def saw_heartbeat(self) -> None:
        """Count a heartbeat."""
        self._heartbeats.inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """All metrics as Prometheus reads them, and their media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type
