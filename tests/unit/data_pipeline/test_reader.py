"""The reader where storage or machine are in trouble: no example is taken for a bad one, and nobody waits for long."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from data_pipeline.errors import StorageError
from data_pipeline.examples import ExampleTable, open_split
from data_pipeline.reading import reader
from data_pipeline.reading.reader import ShardReader
from data_pipeline.storage.local import LocalStorage


@pytest.fixture
def train(built_clothing) -> ExampleTable:
    """20 examples in 3 shards."""
    return open_split(built_clothing[1], "train")


class Away:
    """A remote storage."""

    num_requests = 0

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.num_requests += 1
        raise StorageError(f"{path}: no answer")


def test_a_storage_that_was_away_is_not_waited_for_again(train, monkeypatch):
    """Each request has minutes of patience, and a batch has hundreds of them."""
    monkeypatch.setattr(reader, "NUM_REQUESTS", 1)
    away = Away()
    with closing(ShardReader(dataclasses.replace(train, storage=away))) as opened:
        for _ in range(2):
            with pytest.raises(StorageError, match=r"^train-\d+\.tar: no answer$"):
                opened.read_many(range(20))
    assert away.num_requests == 1


class Exhausted(LocalStorage):
    def path(self, path: str) -> Path:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_too_many_open_files_are_no_bad_examples(train):
    exhausted = dataclasses.replace(train, storage=Exhausted(Path()))
    message = r"shard train-\d+\.tar: Too many open files"
    with closing(ShardReader(exhausted)) as opened, pytest.raises(StorageError, match=message):
        opened.read_many(range(20))
