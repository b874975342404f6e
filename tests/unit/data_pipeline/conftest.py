"""Data sets that many tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_data import ClothingSet, build_clothing, build_digits, make_clothing, make_idx_folder

from data_pipeline.manifest import Manifest


@pytest.fixture
def clothing(tmp_path: Path) -> ClothingSet:
    """A raw data set to break and build."""
    return make_clothing(tmp_path / "clothing")


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """Raw idx files to break and build."""
    return make_idx_folder(tmp_path / "idx")


@pytest.fixture(scope="session")
def built_clothing(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClothingSet, Manifest]:
    """For tests that only read."""
    folder = tmp_path_factory.mktemp("clothing")
    made = make_clothing(folder / "raw")
    return made, build_clothing(made, folder / "built")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """For tests that only read."""
    return build_digits(tmp_path_factory.mktemp("digits"))
