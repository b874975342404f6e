"""Every process is killed, in turn, while real jobs train on a real Ray: each job ends once, with each epoch once.

`make test` runs a sample; `make test-kill` runs them all, and prints rounds, kills and findings.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from marked_processes import kill_marked, marked, wait_until
from postgres_server import PostgresServer
from sample_data import build_digits
from webhook_receiver import webhook_receiver

from service.access.roles import Role
from service.store.database import migrate, open_engine
from service.store.tokens import NewToken, Tokens
from tests.kill.cluster import Api, RayCluster, ray_cluster
from tests.kill.plan import plan_round
from tests.kill.rounds import World, run_round

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]


@pytest.fixture(scope="module")
def mark() -> Iterator[str]:
    """All processes of this test bear it."""
    made = uuid.uuid4().hex
    yield made
    kill_marked(made)


@pytest.fixture(scope="module")
def cluster(mark: str) -> Iterator[RayCluster]:
    with ray_cluster(mark) as made:
        made.wait_ready()
        yield made


def replicas(mark: str, folder: Path, database_url: str, cluster: RayCluster, number: int) -> list[Api]:
    """API processes on one database."""
    settings = {
        "HUSH_HOME": str(folder),
        "HUSH_DATABASE_URL": database_url,
        "HUSH_STORAGE": str(folder / "storage"),
        "HUSH_RAY_ADDRESS": cluster.server.url,
        "HUSH_RAY_TOKEN": cluster.server.token or "",
        "HUSH_ALLOWED_ROOTS": str(folder.parent),
        "HUSH_LOST_AFTER_S": "20",
        "HUSH_RETRY_BACKOFF_S": "0.5",
        "HUSH_WEBHOOK_ALLOW_HTTP": "true",
        "HUSH_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    return [
        Api(mark, f"{folder.name}-{index}", folder.parent / f"{folder.name}-{index}.log", settings)
        for index in range(number)
    ]


@pytest.fixture
def worlds(mark: str, cluster: RayCluster, postgres: PostgresServer, tmp_path: Path) -> Iterator[dict[str, World]]:
    """A service on each database, and one cluster under both."""
    build_digits(tmp_path / "shards")
    urls = {"sqlite": f"sqlite:///{tmp_path}/hush.db", "postgres": postgres.url(postgres.new_database())}
    made = {}
    with webhook_receiver() as receiver:
        for database, url in urls.items():
            folder = tmp_path / database
            folder.mkdir()
            apis = replicas(mark, folder, url, cluster, 2 if database == "postgres" else 1)
            manifest = tmp_path / "shards/manifest.json"
            made[database] = World(mark, cluster, apis, folder / "storage", manifest, make_token(url), receiver)
        yield made


def test_every_job_ends_once_whoever_is_killed(
    cluster: RayCluster, worlds: dict[str, World], mark: str, request: pytest.FixtureRequest
) -> None:
    kills: Counter[str] = Counter()
    findings: list[str] = []
    numbers = range(request.config.getoption("--kill-rounds"))
    first = request.config.getoption("--kill-from")
    for number in numbers:
        plan = plan_round(first + number, seed=request.config.getoption("--kill-seed"))
        world = worlds[plan.database]
        for api in world.replicas:
            api.start()
            api.wait_ready()
        cluster.wait_ready()
        outcome = run_round(plan, world)
        for api in world.replicas:
            api.stop()
        kills += outcome.kills
        findings += [f"round {plan.number}: {finding}" for finding in outcome.findings]
        print(
            f"round {plan.number} on {plan.database}, {plan.num_workers} workers, {outcome.wall_s:.0f} s:"
            f" killed {dict(outcome.kills)}, missed {outcome.missed}, findings {outcome.findings}",
            flush=True,
        )
    cluster.close()
    wait_until(lambda: not marked(mark), lambda: f"left behind: {marked(mark)}")
    print(f"{len(numbers)} rounds, {kills.total()} kills: {dict(kills)}; {len(findings)} findings")
    assert not findings, "\n".join(findings)
    assert kills, "nothing was killed"


def make_token(database_url: str) -> str:
    """An admin's token, made on the database as an operator makes the first one."""
    engine = open_engine(database_url)
    migrate(engine)
    token = Tokens(engine).create(NewToken("default", "kill test", Role.ADMIN), datetime.now(UTC))[1]
    engine.dispose()
    return token
