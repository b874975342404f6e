"""The API with 100,000 jobs stored beside the API with 1,000, on SQLite and PostgreSQL; and 200 followers of events.

    make bench-api                     (about ten minutes)
    python -m benchmarks.api --help

Two servers a database, each a process with a database of its own, are asked in turn by the same 32 clients, so that
what else the machine does falls on both alike; first GETs and pages, then POSTs, which make the databases grow.
page_p99_ratio: p99 of a page with many jobs stored over that with few; of both databases the worse. Pages have 50 jobs:
the first one, later ones, and with filters. PostgreSQL runs with fsync, as SQLite does.

Then the server with many jobs has followers, each of one of 40 jobs whose drivers send a heartbeat with a finished
epoch each second: events_missed counts what a follower was not told. rss_mb: the server's memory early and late.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import select

from benchmarks import api_follow, api_load
from benchmarks.api_fill import TENANT, fill
from benchmarks.api_load import Call, Clients, Latencies
from benchmarks.api_server import Api, running_api
from service.store.database import migrate, open_engine
from service.store.tables import jobs
from tests import postgres_server
from tests.sample_data import build_digits

DATABASES = ("sqlite", "postgresql")
NUM_FEW = 1_000
NUM_IDS = 500
Latency = dict[str, dict[str, Latencies]]
"""Of each kind of request, by size."""


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    databases: Sequence[str]
    num_jobs: int
    num_clients: int
    num_rounds: int
    seconds: float
    """Of a round."""
    num_followers: int
    follow_s: float


@contextmanager
def databases(kind: str, folder: Path) -> Iterator[tuple[str, str]]:
    """URLs of two empty databases."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/few.db", f"sqlite:///{folder}/many.db"
        return
    postgres_server.SETTINGS.update(fsync="on", full_page_writes="on", shared_buffers="256MB")
    with postgres_server.postgres_server() as server:
        yield server.url(server.new_database()), server.url(server.new_database())


def prepare(url: str, num_jobs: int, manifest: str) -> list[str]:
    """Fill a database; ids of some of its jobs, newest first."""
    engine = open_engine(url)
    migrate(engine)
    fill(engine, num_jobs, manifest)
    with engine.begin() as connection:
        ids = connection.execute(select(jobs.c.id).where(jobs.c.tenant == TENANT).order_by(jobs.c.id.desc()))
        every = list(ids.scalars())
    engine.dispose()
    return every[:: max(1, len(every) // NUM_IDS)]


def race(
    clients: Clients, apis: dict[str, Api], calls: Mapping[str, Sequence[Call]], options: Options
) -> dict[str, Latencies]:
    """One kind of request against each server in turn, first with the one, then with the other ahead."""
    found = {size: Latencies() for size in apis}
    for number in range(options.num_rounds + 1):
        order = sorted(apis, reverse=bool(number % 2))
        for size in order:
            ms = clients.run(apis[size].port, apis[size].token, calls[size], options.seconds)
            if number > 0:  # the first round fills caches
                found[size].add(ms, options.seconds)
    return found


def measure(kind: str, manifest: Path, folder: Path, options: Options) -> tuple[Latency, api_follow.Findings]:
    """All of one kind of database."""
    with ExitStack() as stack:
        sizes = {"few": min(NUM_FEW, options.num_jobs), "many": options.num_jobs}
        urls = dict(zip(sizes, stack.enter_context(databases(kind, folder)), strict=True))
        ids = {size: prepare(urls[size], sizes[size], str(manifest)) for size in sizes}
        apis = {
            size: stack.enter_context(running_api(urls[size], folder / kind / size, manifest.parent)) for size in sizes
        }
        clients = stack.enter_context(Clients(options.num_clients))
        kinds = {
            "get": {size: api_load.get_jobs(ids[size]) for size in sizes},
            "page": {size: api_load.get_pages(ids[size]) for size in sizes},
            "post": {size: api_load.post_jobs(str(manifest)) for size in sizes},
        }
        latency: Latency = {}
        for name, calls in kinds.items():
            latency[name] = race(clients, apis, calls, options)
            _print_latency(kind, name, latency[name])
        findings = api_follow.measure(apis["many"], options.num_followers, options.follow_s)
        _print_findings(kind, findings)
        return latency, findings


def page_p99_ratio(latency: Latency) -> float:
    """p99 of a page with many jobs stored over that with few."""
    return latency["page"]["many"].percentile(0.99) / latency["page"]["few"].percentile(0.99)


def main() -> None:
    """Measure, print tables, and one line of JSON."""
    options = _options()
    found = {}
    with tempfile.TemporaryDirectory(prefix="hush-bench-") as name:
        folder = Path(name)
        build_digits(folder / "shards")
        for kind in options.databases:
            found[kind] = measure(kind, folder / "shards" / "manifest.json", folder, options)
    follow = [findings for _, findings in found.values()]
    summary = {
        "bench": "api",
        "num_jobs": options.num_jobs,
        "num_clients": options.num_clients,
        "page_p99_ratio": round(max(page_p99_ratio(latency) for latency, _ in found.values()), 3),
        "events_missed": sum(findings.num_missed for findings in follow),
        "followers_told_wrong": sum(findings.num_wrong for findings in follow),
        **{kind: _summary(*of_kind) for kind, of_kind in found.items()},
    }
    print(json.dumps(summary))


def _summary(latency: Latency, findings: api_follow.Findings) -> dict[str, object]:
    return {
        "page_p99_ratio": round(page_p99_ratio(latency), 3),
        **{f"{name}_{size}": of.summary() for name, sizes in latency.items() for size, of in sizes.items()},
        "followers": asdict(findings),
    }


def _print_latency(kind: str, name: str, sizes: dict[str, Latencies]) -> None:
    for size, of in sizes.items():
        figures = of.summary()
        print(
            f"{kind:10} {name:5} {size:5} p50 {figures['p50_ms']:8.2f} ms   p99 {figures['p99_ms']:8.2f} ms"
            f"   {figures['per_s']:8.1f} a second   {len(of.ms)} requests",
            flush=True,
        )


def _print_findings(kind: str, findings: api_follow.Findings) -> None:
    print(
        f"{kind:10} {findings.num_followers} followers: {findings.num_events} events, {findings.num_missed} missed,"
        f" {findings.num_wrong} told wrong, {findings.num_progress} progress; {findings.rss_mb_before} MB before,"
        f" {findings.rss_mb_early} early, {findings.rss_mb_late} late",
        flush=True,
    )


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=24, help="of each kind of request, on each server in turn")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a round")
    parser.add_argument("--followers", type=int, default=200)
    parser.add_argument("--follow-seconds", type=float, default=60.0)
    given = parser.parse_args()
    return Options(
        databases=given.databases,
        num_jobs=given.jobs,
        num_clients=given.clients,
        num_rounds=given.rounds,
        seconds=given.seconds,
        num_followers=given.followers,
        follow_s=given.follow_seconds,
    )


if __name__ == "__main__":
    main()
