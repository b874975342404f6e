"""A shard's index file, as it is made: a row for each example, in the order in which they lie in the shard."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from data_pipeline.examples import INDEX_SCHEMA, UNKNOWN_LABEL, Place
from data_pipeline.sources.base import SourceExample

INDEX_SUFFIX = ".index.arrow"


class ShardIndex:
    """Rows of `INDEX_SCHEMA`, and their file."""

    def __init__(self) -> None:
        self._columns: dict[str, list[str | int]] = {column: [] for column in INDEX_SCHEMA.names}

    def __len__(self) -> int:
        return len(self._columns["example_id"])

    def add(self, example: SourceExample, ordinal: int, place: Place) -> None:
        """Append a row."""
        assert example.given_label is not None
        clean_label = UNKNOWN_LABEL if example.clean_label is None else example.clean_label
        labels = example.given_label, clean_label
        row: tuple[str | int, ...] = (example.example_id, example.suffix, *place, ordinal, *labels)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)

    def to_bytes(self) -> bytes:
        """The content of the index file: Arrow IPC, equal rows give equal bytes."""
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
            columns = [_array(values, INDEX_SCHEMA.field(name).type) for name, values in self._columns.items()]
            writer.write_table(pa.Table.from_arrays(columns, schema=INDEX_SCHEMA))
        return sink.getvalue()


def _array(values: Sequence[str | int], kind: pa.DataType) -> pa.Array:
    """As `pa.array`, which imports pandas first: a second or two for each process of a build."""
    if kind == pa.string():
        texts = [str(value).encode() for value in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(texts)))
    numbers = np.array(values, dtype=str(kind))
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])
