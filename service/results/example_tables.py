"""The tables of tracked examples, one an epoch: sorted pages, whole tables, and one example of each.

All epochs of a run track the same examples in the same order, so one that was found once is found again by its row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from service.result_schemas import ExampleSort, ExampleView
from trainer.run_schema import EXAMPLE_COLUMNS

LABEL_KINDS = ("given", "clean", "predicted")


class UnreadableError(ValueError):
    """A file of results is damaged; the message names it."""


@dataclass(frozen=True)
class ExampleQuery:
    """Which examples of an epoch, in which order."""

    sort: ExampleSort = "suspicion"
    ascending: bool = False
    given_label: int | None = None


@dataclass(frozen=True)
class ExampleSlice:
    """Some of the examples that match, and how many match in all."""

    total: int
    items: list[ExampleView]


@dataclass(frozen=True)
class Row:
    """One example in a table, and where it stands there."""

    number: int
    view: ExampleView


def read_slice(path: Path, classes: tuple[str, ...], query: ExampleQuery, offset: int, limit: int) -> ExampleSlice:
    """A slice of the examples that match, in order. FileNotFoundError or UnreadableError."""
    with _Table(path) as table:
        rows = _ordered_rows(table.read([query.sort, "given_label"]), query)
        found = table.read(list(EXAMPLE_COLUMNS)).take(pa.array(rows[offset : offset + limit]))
    return ExampleSlice(len(rows), [_view(row, classes) for row in found.to_pylist()])


def read_all(path: Path, classes: tuple[str, ...], query: ExampleQuery) -> pa.Table:
    """All examples that match, in order, with the names of their classes; NaN becomes null. FileNotFoundError or
    UnreadableError."""
    with _Table(path) as file:
        table = file.read(list(EXAMPLE_COLUMNS))
    table = table.take(pa.array(_ordered_rows(table, query)))
    names = pa.array(classes, pa.string())
    for kind in LABEL_KINDS:
        table = table.append_column(f"{kind}_class", names.take(table[f"{kind}_label"].combine_chunks()))
    for number, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            column = table[field.name]
            table = table.set_column(number, field.name, pc.if_else(pc.is_nan(column), None, column))
    return table


def read_one(path: Path, classes: tuple[str, ...], example_id: str, likely: int | None = None) -> Row | None:
    """The row of one example, looked for at `likely` first; None if it is not tracked. FileNotFoundError or
    UnreadableError."""
    with _Table(path) as table:
        if likely is not None and (row := table.row(likely)) is not None and row["example_id"] == example_id:
            return Row(likely, _view(row, classes))
        number: int = pc.index(table.read(["example_id"])["example_id"].cast(pa.string()), example_id).as_py()
        row = table.row(number) if number >= 0 else None
        return None if row is None else Row(number, _view(row, classes))


class _Table:
    """A Parquet file, its errors told in our words. Columns that it is too old to have are null."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = pq.ParquetFile(path)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, columns: list[str], group: int | None = None) -> pa.Table:
        """Some columns, of all rows or of a row group."""
        known = [column for column in columns if column in self._file.schema_arrow.names]
        try:
            table = self._file.read(known) if group is None else self._file.read_row_group(group, known)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None
        for column in columns:
            if column not in known:
                table = table.append_column(column, pa.nulls(table.num_rows, pa.float64()))
        return table.select(columns)

    def row(self, number: int) -> dict[str, object] | None:
        """One row, out of its row group; None if there is none of this number."""
        start = 0
        for group in range(self._file.num_row_groups):
            end = start + self._file.metadata.row_group(group).num_rows
            if start <= number < end:
                here = self.read(list(EXAMPLE_COLUMNS), group).slice(number - start, 1)
                row: dict[str, object] = here.to_pylist()[0]
                return row
            start = end
        return None

    def _unreadable(self, error: Exception) -> UnreadableError:
        reason = str(error).partition("\n")[0]
        return UnreadableError(f"{self._path.parent.name}/{self._path.name} cannot be read: {reason}")


def _ordered_rows(keys: pa.Table, query: ExampleQuery) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows that match, sorted; equal values stay in the table's order, NaN and null come last either way."""
    rows = np.arange(keys.num_rows)
    if query.given_label is not None:
        rows = rows[keys["given_label"].to_numpy() == query.given_label]
    values = keys[query.sort].to_numpy()[rows].astype(np.float64)
    signed = values if query.ascending else -values
    return rows[np.argsort(signed, kind="stable")]


def _view(row: dict[str, object], classes: tuple[str, ...]) -> ExampleView:
    """A row with the names of its classes; floats that JSON does not have become null where the schema allows it."""
    finite = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in row.items()}
    names = {f"{kind}_class": _class_name(row[f"{kind}_label"], classes) for kind in LABEL_KINDS}
    return ExampleView.model_validate(finite | names)


def _class_name(label: object, classes: tuple[str, ...]) -> str | None:
    return classes[label] if isinstance(label, int) else None
