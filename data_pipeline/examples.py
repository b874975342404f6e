"""ExampleTable: where each example of a split lies, and its labels. Read from the shards' index files.

An index file is Arrow IPC, one row an example in the order of its shard, ~100 bytes a row, so that bytes are found
without reading tar headers and a crop is drawn before its picture is decoded. The table needs 44 bytes an example and
its id, and no Python object: a million fit in 80 MB.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.errors import StorageError
from data_pipeline.label_corruption import check_corruption, corrupt
from data_pipeline.manifest import Manifest, Shard, Split
from data_pipeline.spec import Corruption
from data_pipeline.storage import Storage
from data_pipeline.string_column import StringColumn

UNKNOWN_LABEL = -1
INDEX_THREADS = 16
"""Index files read at a time: over a network each costs a round trip."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("suffix", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("xxh3", pa.uint64(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("given_label", pa.int64(), nullable=False),
        pa.field("clean_label", pa.int64(), nullable=False),
    ]
)
"""offset, length: the image's bytes in the shard, of checksum xxh3. ordinal: position in the source's order of the
split. clean_label: -1 = unknown."""


class Place(NamedTuple):
    """Where a picture lies in a shard, and what it is like."""

    offset: int
    length: int
    xxh3: int
    """xxh3-64 of its bytes."""
    height: int
    width: int


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleTable:
    """N examples of one split, a column an array."""

    digest: str
    """The manifest's."""
    split: str
    num_classes: int
    storage: Storage
    """Where the shards lie."""
    shard_files: tuple[Shard, ...]
    """The split's shards, as the manifest lists them."""
    shard_indices: NDArray[np.int32]
    """(N,) into shard_files."""
    example_ids: StringColumn
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int32]
    checksums: NDArray[np.uint64]
    """(N,) xxh3-64 of the image's bytes."""
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    ordinals: NDArray[np.int32]
    """(N,) position in the source's order of the split: "data-set order"."""
    given_labels: NDArray[np.int32]
    clean_labels: NDArray[np.int32]
    """(N,), -1 = unknown. For evaluation only."""

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def shards(self) -> NDArray[np.object_]:
        """(N,) of str: each example's shard."""
        names = np.array([shard.path for shard in self.shard_files], dtype=np.object_)
        named: NDArray[np.object_] = names[self.shard_indices]
        return named

    def shard_of(self, row: int) -> str:
        """The path of an example's shard in the storage."""
        return self.shard_files[int(self.shard_indices[row])].path

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> ExampleTable:
        """The rows at these indices, in this order."""
        rows = np.asarray(indices, dtype=np.int64)
        columns = {name: getattr(self, name)[rows] for name in _ROW_COLUMNS}
        return dataclasses.replace(self, **columns)


_NUMBERS = {
    "offset": ("offsets", np.int64),
    "length": ("lengths", np.int32),
    "xxh3": ("checksums", np.uint64),
    "height": ("heights", np.int32),
    "width": ("widths", np.int32),
    "ordinal": ("ordinals", np.int32),
    "given_label": ("given_labels", np.int32),
    "clean_label": ("clean_labels", np.int32),
}
"""Column of the index -> column of the table, and its type there."""
_NO_TEXT = pa.nulls(0, pa.string())
_ROW_COLUMNS = ("shard_indices", "example_ids", *(column for column, _ in _NUMBERS.values()))


def open_split(manifest: Manifest, split: str, corruption: Corruption | None = None) -> ExampleTable:
    """Read the split's index files; `corruption` injects label noise into the training split."""
    entry = manifest.split(split)
    sizes = [shard.num_examples for shard in entry.shards]
    try:
        columns = {column: np.empty(sum(sizes), dtype) for column, dtype in _NUMBERS.values()}
    except (MemoryError, ValueError):
        raise ValueError(
            f"{manifest.url}: split {split!r} says it has {sum(sizes)} examples; no memory holds them"
        ) from None

    def read(shard: Shard, last: int) -> pa.Array:
        index = _read_index(manifest, entry, shard)
        for name, (column, _) in _NUMBERS.items():
            columns[column][last - shard.num_examples : last] = column_values(index, name)
        # A copy, so that the file's bytes can go; Arrow's own allocator would keep a tenth more than it uses.
        return pa.concat_arrays([_NO_TEXT, *index["example_id"].chunks], memory_pool=pa.system_memory_pool())

    with ThreadPoolExecutor(INDEX_THREADS, thread_name_prefix="hush-index") as threads:
        example_ids = list(threads.map(read, entry.shards, np.cumsum(sizes).tolist()))
    table = ExampleTable(
        digest=manifest.digest,
        split=split,
        num_classes=len(manifest.classes),
        storage=manifest.storage,
        shard_files=entry.shards,
        shard_indices=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        example_ids=StringColumn(example_ids),
        **columns,
    )
    return table if corruption is None else _corrupted(table, manifest, corruption)


def column_values(index: pa.Table, name: str) -> NDArray[np.integer[Any]]:
    """A column of numbers. Arrow's own `to_numpy` imports pandas first: two seconds, and 35 MB."""
    values: NDArray[np.integer[Any]] = np.empty(len(index), dtype=str(index.schema.field(name).type))
    done = 0
    for chunk in index[name].chunks:
        values[done : done + len(chunk)] = np.from_dlpack(chunk)
        done += len(chunk)
    return values


def _corrupted(table: ExampleTable, manifest: Manifest, corruption: Corruption) -> ExampleTable:
    if table.split != "train":
        raise ValueError(f"corruption is for the split 'train'; {table.split!r} is for measuring and stays as it is")
    check_corruption(corruption, manifest)
    # Examples lost at build take their draw too: the labels are those that the whole source would have got.
    labels_L = np.full(manifest.split(table.split).num_listed, UNKNOWN_LABEL, dtype=np.int64)
    labels_L[table.ordinals] = table.given_labels
    lost = [example for example in manifest.skipped if example.split == table.split]
    for example in lost:
        if example.label is not None:
            labels_L[example.ordinal] = example.label
    if (labels_L == UNKNOWN_LABEL).sum() != sum(example.label is None for example in lost):
        raise ValueError(f"{manifest.url}: the index files name an ordinal twice; build the data set anew")
    noisy_L = corrupt(labels_L, table.num_classes, corruption)
    return dataclasses.replace(table, given_labels=noisy_L[table.ordinals].astype(np.int32))


def _read_index(manifest: Manifest, split: Split, shard: Shard) -> pa.Table:
    path = f"{manifest.storage.url}/{shard.index.path}"
    try:
        content = manifest.storage.read(shard.index.path)
    except StorageError:
        raise
    except OSError as error:
        raise ValueError(f"index {path!r} cannot be read: {error.strerror or error}") from None
    if hashlib.sha256(content).hexdigest() != shard.index.sha256:
        raise ValueError(f"index {path!r} differs from the manifest's sha256; build the data set anew")
    try:
        with pa.ipc.open_file(pa.py_buffer(content)) as file:
            table = file.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"index {path!r} is damaged: {error}") from None
    fits = table.schema.equals(INDEX_SCHEMA) and not any(column.null_count for column in table.columns)
    if not fits or table.num_rows != shard.num_examples:
        raise ValueError(f"index {path!r} does not fit the manifest; build the data set anew")
    for name, (low, high) in _limits(len(manifest.classes), split.num_listed).items():
        _check_column(path, table, name, low, high)
    return table


def _limits(num_classes: int, num_listed: int) -> dict[str, tuple[int, int]]:
    """Smallest and largest value of each column: what the table's types and whoever counts with them rely on."""
    largest = np.iinfo(np.int32).max
    return {
        "offset": (0, np.iinfo(np.int64).max),
        "length": (0, largest),
        "height": (1, largest),
        "width": (1, largest),
        "ordinal": (0, num_listed - 1),
        "given_label": (0, num_classes - 1),
        "clean_label": (UNKNOWN_LABEL, num_classes - 1),
    }


def _check_column(path: str, table: pa.Table, name: str, low: int, high: int) -> None:
    values = column_values(table, name)
    wrong = np.flatnonzero((values < low) | (values > high))
    if len(wrong):
        example_id = table["example_id"][int(wrong[0])].as_py()
        raise ValueError(
            f"index {path!r}: {name} {values[wrong[0]]} of example {example_id!r} must be {low} to {high};"
            " build the data set anew"
        )
