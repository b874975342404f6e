"""A shard's index file, as it is made: a row for each example, in the order in which they lie in the shard."""

from __future__ import annotations

import io
from typing import NamedTuple

import pyarrow as pa

from data_pipeline.examples import INDEX_SCHEMA, UNKNOWN_LABEL
from data_pipeline.sources.base import SourceExample

INDEX_SUFFIX = ".index.arrow"


class Place(NamedTuple):
    """Where a picture lies in a shard, and what it is like."""

    offset: int
    length: int
    xxh3: int
    """xxh3-64 of its bytes."""
    height: int
    width: int


class ShardIndex:
    """Rows of `INDEX_SCHEMA`, and their file."""

    def __init__(self) -> None:
        self._columns: dict[str, list[str | int]] = {column: [] for column in INDEX_SCHEMA.names}

    def __len__(self) -> int:
        return len(self._columns["example_id"])

    def add(self, example: SourceExample, ordinal: int, place: Place) -> None:
        """Append a row."""
        clean_label = UNKNOWN_LABEL if example.clean_label is None else example.clean_label
        row = (example.example_id, example.suffix, *place, ordinal, example.given_label, clean_label)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)

    def to_bytes(self) -> bytes:
        """The content of the index file: Arrow IPC, equal rows give equal bytes."""
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
            writer.write_table(pa.table(self._columns, schema=INDEX_SCHEMA))
        return sink.getvalue()
