"""A data set, a cluster of subprocesses, and a service on both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sample_data import build_digits
from service_stand_ins import RunningService, SubprocessLauncher, running_service


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
