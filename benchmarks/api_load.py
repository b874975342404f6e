"""Clients that ask as fast as they are answered: threads on kept connections, in processes apart from the server."""

from __future__ import annotations

import http.client
import itertools
import json
import multiprocessing
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

NUM_PROCESSES = 2


@dataclass(frozen=True)
class Call:
    """One request."""

    method: str
    path: str
    body: bytes | None = None
    expect: int = 200


@dataclass(frozen=True)
class Load:
    """What the clients of one process do."""

    port: int
    token: str
    calls: Sequence[Call]
    """Each client goes round and round, and begins elsewhere."""
    num_clients: int
    seconds: float


@dataclass
class Latencies:
    """Of one kind of request against one server, over all rounds."""

    ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, ms: Sequence[float], seconds: float) -> None:
        """Those of one more round."""
        self.ms += ms
        self.seconds += seconds

    def percentile(self, share: float) -> float:
        """The latency that this share of requests stays below."""
        ordered = sorted(self.ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def summary(self) -> dict[str, float]:
        """Median, p99 and rate."""
        return {
            "p50_ms": round(self.percentile(0.5), 2),
            "p99_ms": round(self.percentile(0.99), 2),
            "per_s": round(len(self.ms) / self.seconds, 1),
        }


class Clients:
    """Processes of clients, started once."""

    def __init__(self, num_clients: int) -> None:
        self._share = num_clients // NUM_PROCESSES
        self._pool = ProcessPoolExecutor(NUM_PROCESSES, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def run(self, port: int, token: str, calls: Sequence[Call], seconds: float) -> list[float]:
        """Milliseconds of every request."""
        load = Load(port, token, calls, self._share, seconds)
        return [ms for part in self._pool.map(run_clients, [load] * NUM_PROCESSES) for ms in part]


def run_clients(load: Load) -> list[float]:
    """All clients of one process, each in a thread."""
    until = time.perf_counter() + load.seconds
    with ThreadPoolExecutor(load.num_clients) as pool:
        parts = pool.map(lambda number: list(_ask(load, number, until)), range(load.num_clients))
        return [ms for part in parts for ms in part]


def _ask(load: Load, number: int, until: float) -> Iterator[float]:
    connection = http.client.HTTPConnection("127.0.0.1", load.port, timeout=60)
    connection.connect()
    headers = {"Authorization": f"Bearer {load.token}", "Content-Type": "application/json"}
    start = number * len(load.calls) // load.num_clients
    for call in itertools.islice(itertools.cycle(load.calls), start, None):
        began = time.perf_counter()
        if began >= until:
            break
        keyed = headers if call.body is None else {**headers, "Idempotency-Key": uuid.uuid4().hex}
        connection.request(call.method, call.path, call.body, keyed)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == call.expect, f"{call.method} {call.path}: {answer.status} {content[:500]!r}"
        yield (time.perf_counter() - began) * 1000
    connection.close()


def get_jobs(ids: Sequence[str]) -> list[Call]:
    """Each of these jobs."""
    return [Call("GET", f"/api/v1/jobs/{job_id}") for job_id in ids]


def get_pages(ids: Sequence[str]) -> list[Call]:
    """Pages of 50 jobs, however many are stored: the first, one from the middle, and with filters and pairs of them."""
    queries = (
        "",
        f"cursor={ids[len(ids) // 2]}",
        "state=SUCCEEDED",
        f"state=SUCCEEDED&cursor={ids[len(ids) // 2]}",
        "method=ivon",
        "name=job-7",
        "state=SUCCEEDED&method=ivon",
        "state=SUCCEEDED&name=job-7",
    )
    return [Call("GET", f"/api/v1/jobs?limit=50&{query}".rstrip("&")) for query in queries]


def post_jobs(manifest: str) -> list[Call]:
    """New jobs, each under a key of its own."""
    body = json.dumps({"name": "posted", "data": {"manifest": manifest}}).encode()
    return [Call("POST", "/api/v1/jobs", body, expect=202)]
