"""A table of examples as a file: CSV for a spreadsheet, Parquet for a data frame."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import IO, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

ROWS = 10_000
"""Of a piece of CSV."""
PIECE_BYTES = 1 << 20
MAX_AT_A_TIME = 2
"""Files that are made at a time: each takes some 400 MB for a million examples while it is made."""


class BusyError(Exception):
    """As many files as may be are being made."""


class Exports:
    """Makes files of tables, a few at a time; they lie on disk while they are fetched, however slowly."""

    def __init__(self) -> None:
        """Makes nothing yet."""
        self._places = threading.BoundedSemaphore(MAX_AT_A_TIME)

    def make(self, table: Callable[[], pa.Table | None], kind: Literal["csv", "parquet"]) -> IO[bytes] | None:
        """A file of what `table` reads, from its beginning; None where that is nothing. BusyError; OSError where the
        disk is full. Whoever closes it removes it."""
        if not self._places.acquire(blocking=False):
            raise BusyError
        try:
            found = table()
            return None if found is None else _written(found, kind)
        finally:
            self._places.release()


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """The file, piece by piece."""
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _written(table: pa.Table, kind: Literal["csv", "parquet"]) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - whoever sends it closes it
    try:
        if kind == "csv":
            _write_csv(table, file)
        else:
            pq.write_table(table, file)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _write_csv(table: pa.Table, file: IO[bytes]) -> None:
    """A line with the columns' names, then a line for each row; a cell is empty where there is nothing to tell."""
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # which Arrow does not write as CSV
            table = table.set_column(number, field.name, table[field.name].cast(field.type.value_type))
    csv.write_csv(table.slice(0, 0), file)
    for start in range(0, table.num_rows, ROWS):
        csv.write_csv(table.slice(start, ROWS), file, csv.WriteOptions(include_header=False))
