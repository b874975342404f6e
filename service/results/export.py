"""A table of examples as a file, piece by piece: CSV for a spreadsheet, Parquet for a data frame."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

ROWS = 10_000
"""Of a piece of CSV."""
PIECE_BYTES = 1 << 20
IN_MEMORY_BYTES = 16 << 20
"""A larger Parquet file is written to disk first: its end says where its parts are."""


def as_csv(table: pa.Table) -> Iterator[bytes]:
    """A line with the columns' names, then a line for each row; a cell is empty where there is nothing to tell."""
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # which Arrow does not write as CSV
            table = table.set_column(number, field.name, table[field.name].cast(field.type.value_type))
    yield _csv(table.slice(0, 0), has_header=True)
    for start in range(0, table.num_rows, ROWS):
        yield _csv(table.slice(start, ROWS), has_header=False)


def as_parquet(table: pa.Table) -> Iterator[bytes]:
    """The same as Parquet."""
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as file:
        pq.write_table(table, file)
        file.seek(0)
        while piece := file.read(PIECE_BYTES):
            yield piece


def _csv(table: pa.Table, *, has_header: bool) -> bytes:
    text = io.BytesIO()
    csv.write_csv(table, text, csv.WriteOptions(include_header=has_header))
    return text.getvalue()
