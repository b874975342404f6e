"""A data set, a cluster of subprocesses, a service on both, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from awaited_client import QUICK, AnyClient, AwaitedClient, Connect
from sample_data import build_digits
from service_stand_ins import RunningService, SubprocessLauncher, running_service

from service.client import Client, Retry


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    build_digits(folder / "shards")
    return folder / "shards" / "manifest.json"


@pytest.fixture
def launcher() -> Iterator[SubprocessLauncher]:
    made = SubprocessLauncher()
    yield made
    made.lose_everything()


@pytest.fixture
def service(tmp_path: Path, launcher: SubprocessLauncher, manifest: Path) -> Iterator[RunningService]:
    with running_service(tmp_path / "home", launcher, allowed_roots=(manifest.parent.parent,)) as running:
        yield running


@pytest.fixture(params=[Client, AwaitedClient], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes clients, and closes them."""
    made: list[AnyClient] = []

    def connect(url: str, token: str | None = None, *, retry: Retry = QUICK) -> AnyClient:
        made.append(request.param(url, token, retry=retry))
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def client(service: RunningService, connect: Connect) -> AnyClient:
    return connect(service.url, service.token)
