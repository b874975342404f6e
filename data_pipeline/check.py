"""Whether a data set is what its manifest says: every file, every example. What is wrong is told with its place.

Checksums say whether bytes are those that were written; `decode_pictures` says whether they are pictures, too: a file
that was damaged before the build has a sound checksum.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import BadImageError, StorageError
from data_pipeline.examples import INDEX_SCHEMA, UNKNOWN_LABEL, Place, column_values
from data_pipeline.manifest import FileEntry, Manifest, Shard, Split
from data_pipeline.pictures import decode
from data_pipeline.processes import OnStep, map_unordered, sensible_num_processes
from data_pipeline.storage import Storage, storage_for

READ_BYTES = 8 << 20
"""Files are read in pieces of so many bytes: a shard is never held whole."""
ROWS_PER_READ = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as the manifest says."""

    file: str
    """Relative to the manifest."""
    example_id: str | None
    """None: it is the file as a whole."""
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.example_id, self.reason) if part)


def check(
    manifest: Manifest,
    *,
    decode_pictures: bool = False,
    num_processes: int | None = None,
    on_step: OnStep = lambda _: None,
) -> list[Problem]:
    """All problems, in the manifest's order; `on_step` is told of examples checked. StorageError if it is away."""
    tasks = [_Task(name, shard) for name, split in manifest.splits.items() for shard in split.shards]
    checker = _ShardChecker(manifest.storage.url, len(manifest.classes), decode_pictures=decode_pictures)

    if num_processes is None:
        num_processes = sensible_num_processes(sum(split.num_examples for split in manifest.splits.values()))
    with closing(
        map_unordered(checker, tasks, min(num_processes, len(tasks)), lambda _, count: on_step(count))
    ) as results:
        reports = {report.shard: report for report in results}
    in_order = [reports[task.shard.path] for task in tasks]
    problems = [problem for report in in_order for problem in report.problems]
    problems += _twice(in_order)
    for name, split in manifest.splits.items():
        problems += _counts(name, split, [reports[shard.path] for shard in split.shards])
    return problems


def file_problem(storage: Storage, entry: FileEntry) -> str | None:
    """What is wrong with a file, or None: it is there and has the size and the checksum that the entry says."""
    try:
        size_bytes = storage.size_bytes(entry.path)
        if size_bytes != entry.size_bytes:
            return f"{size_bytes:,} bytes, the manifest says {entry.size_bytes:,}"
        checksum = hashlib.sha256()
        for offset in range(0, size_bytes, READ_BYTES):
            checksum.update(storage.read_range(entry.path, offset, min(READ_BYTES, size_bytes - offset)))
    except StorageError:
        raise
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return error.strerror or str(error)
    return None if checksum.hexdigest() == entry.sha256 else "its content differs from the manifest's sha256"


@dataclasses.dataclass(frozen=True, slots=True)
class _Task:
    split: str
    shard: Shard


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Report:
    """What became of one shard; its M rows, if the index could be read."""

    shard: str
    problems: tuple[Problem, ...]
    example_ids_M: pa.Array | None = None
    ordinals_M: NDArray[np.integer[Any]] | None = None
    given_labels_M: NDArray[np.integer[Any]] | None = None
    num_clean_labels: int = 0


@dataclasses.dataclass(frozen=True)
class _ShardChecker:
    """Checks one shard and its index."""

    url: str
    num_classes: int
    decode_pictures: bool = dataclasses.field(kw_only=True)

    def __call__(self, task: _Task, on_step: OnStep) -> _Report:
        storage, shard = storage_for(self.url), task.shard
        tar_problem = file_problem(storage, shard)
        problems = [Problem(shard.path, None, tar_problem)] if tar_problem else []
        index = _read_index(storage, shard)
        if isinstance(index, str):
            on_step(shard.num_examples)
            return _Report(shard.path, (*problems, Problem(shard.index.path, None, index)))
        problems += self._rows(shard, index)
        if (tar_problem or self.decode_pictures) and storage.exists(shard.path):
            hurt = list(self._pictures(storage, shard, index, on_step))
            problems += hurt
            if tar_problem and not hurt:
                problems.append(Problem(shard.path, None, "no picture is hurt: headers, labels or padding are"))
        else:
            on_step(shard.num_examples)
        clean_labels_M = column_values(index, "clean_label")
        return _Report(
            shard.path,
            tuple(problems),
            index["example_id"].combine_chunks(),
            column_values(index, "ordinal"),
            column_values(index, "given_label"),
            int((clean_labels_M != UNKNOWN_LABEL).sum()),
        )

    def _rows(self, shard: Shard, index: pa.Table) -> Iterator[Problem]:
        """What no example may say, whatever its bytes are."""
        last = self.num_classes - 1
        columns = ("example_id", "offset", "length", "height", "width", "given_label", "clean_label")
        for example_id, offset, length, height, width, given, clean in zip(
            *(index[column].to_pylist() for column in columns), strict=True
        ):
            if not 0 <= given <= last:
                yield Problem(shard.index.path, example_id, f"given label {given} must be 0 to {last}")
            if not UNKNOWN_LABEL <= clean <= last:
                yield Problem(shard.index.path, example_id, f"clean label {clean} must be 0 to {last}, or -1: unknown")
            if not _lies_inside(shard, offset, length):
                reason = f"bytes {offset} to {offset + length} lie outside the shard's {shard.size_bytes:,}"
                yield Problem(shard.index.path, example_id, reason)
            if height < 1 or width < 1:
                yield Problem(shard.index.path, example_id, f"a picture of {width} x {height} pixels")

    def _pictures(self, storage: Storage, shard: Shard, index: pa.Table, on_step: OnStep) -> Iterator[Problem]:
        """Pictures whose bytes are not those that were written, or that do not decode."""
        for start in range(0, len(index), ROWS_PER_READ):
            rows = index.slice(start, ROWS_PER_READ)
            columns = (rows[column].to_pylist() for column in Place._fields)
            places = [Place(*values) for values in zip(*columns, strict=True)]
            inside = [row for row, place in enumerate(places) if _lies_inside(shard, place.offset, place.length)]
            ranges = [(places[row].offset, places[row].length) for row in inside]
            for row, data in zip(inside, storage.read_ranges(shard.path, ranges), strict=True):
                if reason := self._picture(places[row], data):
                    yield Problem(shard.path, rows["example_id"][row].as_py(), reason)
            on_step(len(rows))

    def _picture(self, place: Place, data: bytes) -> str | None:
        if len(data) != place.length:
            return f"the file ends inside the picture at offset {place.offset}"
        if xxhash.xxh3_64_intdigest(data) != place.xxh3:
            return f"bytes {place.offset} to {place.offset + place.length} differ from their checksum"
        if self.decode_pictures:
            try:
                height, width, _ = decode.decode(data).shape
            except BadImageError as error:
                return str(error)
            if (height, width) != (place.height, place.width):
                return f"{width} x {height} pixels, the index says {place.width} x {place.height}"
        return None


def _lies_inside(shard: Shard, offset: int, length: int) -> bool:
    """Whether there can be a picture at that place."""
    return offset >= 0 and length >= 0 and offset + length <= shard.size_bytes


def _read_index(storage: Storage, shard: Shard) -> pa.Table | str:
    """The table, or what is wrong with the file."""
    if problem := file_problem(storage, shard.index):
        return problem
    try:
        table = pa.ipc.open_file(pa.py_buffer(storage.read(shard.index.path))).read_all()
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        return f"is no index file: {error}"
    if not table.schema.equals(INDEX_SCHEMA):
        return f"its columns must be {', '.join(INDEX_SCHEMA.names)}"
    if table.num_rows != shard.num_examples:
        return f"{table.num_rows:,} examples, the manifest says {shard.num_examples:,}"
    return table


def _twice(reports: Sequence[_Report]) -> Iterator[Problem]:
    """Ids that stand for more than one example of the data set."""
    known = [(report.shard, report.example_ids_M) for report in reports if report.example_ids_M is not None]
    counts = pc.value_counts(pa.chunked_array([ids_M for _, ids_M in known], pa.string()))
    often = counts.field("values").filter(pc.greater(counts.field("counts"), pa.scalar(1, pa.int64())))
    for shard, ids_M in known if len(often) else ():
        for example_id in pc.unique(ids_M.filter(pc.is_in(ids_M, often))).to_pylist():
            yield Problem(shard, example_id, "the id stands for more than one example of the data set")


def _counts(name: str, split: Split, reports: Sequence[_Report]) -> Iterator[Problem]:
    """Whether the split's examples add up to what the manifest says; nothing, if not all of them are known."""
    labels = [report.given_labels_M for report in reports if report.given_labels_M is not None]
    ordinals = [report.ordinals_M for report in reports if report.ordinals_M is not None]
    if len(labels) < len(reports) or not reports:
        return
    ordinals_N = np.concatenate(ordinals)
    if len(np.unique(ordinals_N)) < len(ordinals_N) or ordinals_N.min() < 0 or ordinals_N.max() >= split.num_listed:
        yield Problem(name, None, f"ordinals must be different numbers below num_listed {split.num_listed}")
    values, counts = np.unique(np.concatenate(labels), return_counts=True)
    class_counts = {label: count for label, count in enumerate(split.class_counts) if count}
    if dict(zip(values.tolist(), counts.tolist(), strict=True)) != class_counts:
        yield Problem(name, None, "the given labels do not add up to class_counts")
    if (num_clean_labels := sum(report.num_clean_labels for report in reports)) != split.num_clean_labels:
        reason = f"{num_clean_labels:,} clean labels, the manifest says {split.num_clean_labels:,}"
        yield Problem(name, None, reason)
