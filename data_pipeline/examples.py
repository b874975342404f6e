"""ExampleTable: where each example of a split lies, and its labels. Read from the shards' index files.

An index file is Arrow IPC, one row an example in the order of its shard, ~100 bytes a row, so that bytes are found
without reading tar headers and a crop is drawn before its picture is decoded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.label_corruption import corrupt
from data_pipeline.manifest import Manifest, Shard, file_sha256
from data_pipeline.spec import Corruption

UNKNOWN_LABEL = -1

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


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleTable:
    """N examples of one split, a column an array."""

    digest: str
    """The manifest's."""
    split: str
    num_classes: int
    shard_names: tuple[str, ...]
    shard_paths: tuple[Path, ...]
    shard_indices: NDArray[np.int32]
    """(N,) into shard_names and shard_paths."""
    example_ids: NDArray[np.object_]
    """(N,) of str."""
    suffixes: NDArray[np.object_]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    checksums: NDArray[np.uint64]
    """(N,) xxh3-64 of the image's bytes."""
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    ordinals: NDArray[np.int64]
    """(N,) position in the source's order of the split: "data-set order"."""
    given_labels: NDArray[np.int64]
    clean_labels: NDArray[np.int64]
    """(N,), -1 = unknown. For evaluation only."""

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def shards(self) -> NDArray[np.object_]:
        """(N,) of str: each example's shard."""
        names: NDArray[np.object_] = np.array(self.shard_names, dtype=np.object_)[self.shard_indices]
        return names

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> ExampleTable:
        """The rows at these indices, in this order."""
        rows = np.asarray(indices, dtype=np.int64)
        columns = {name: getattr(self, name)[rows] for name in _ROW_COLUMNS}
        return dataclasses.replace(self, **columns)


_ROW_COLUMNS = (
    "shard_indices", "example_ids", "suffixes", "offsets", "lengths", "checksums", "heights", "widths", "ordinals",
    "given_labels", "clean_labels",
)  # fmt: skip


def open_split(manifest: Manifest, split: str, corruption: Corruption | None = None) -> ExampleTable:
    """Read the split's index files; `corruption` injects label noise into the training split."""
    entry = manifest.split(split)
    tables = [_read_index(manifest.root, shard) for shard in entry.shards]
    # Copied out of the map: writable (torch warns of arrays that are not), and safe if the files are replaced.
    rows = {
        name: column.to_numpy().copy()
        for name, column in zip(INDEX_SCHEMA.names, pa.concat_tables(tables), strict=True)
    }
    table = ExampleTable(
        digest=manifest.digest,
        split=split,
        num_classes=len(manifest.classes),
        shard_names=tuple(shard.path for shard in entry.shards),
        shard_paths=tuple(manifest.root / shard.path for shard in entry.shards),
        shard_indices=np.repeat(np.arange(len(tables), dtype=np.int32), [shard.num_examples for shard in entry.shards]),
        example_ids=rows["example_id"],
        suffixes=rows["suffix"],
        offsets=rows["offset"],
        lengths=rows["length"],
        checksums=rows["xxh3"],
        heights=rows["height"],
        widths=rows["width"],
        ordinals=rows["ordinal"],
        given_labels=rows["given_label"],
        clean_labels=rows["clean_label"],
    )
    return table if corruption is None else _corrupted(table, manifest, corruption)


def _corrupted(table: ExampleTable, manifest: Manifest, corruption: Corruption) -> ExampleTable:
    if table.split != "train":
        raise ValueError(f"corruption is for the split 'train'; {table.split!r} is for measuring and stays as it is")
    if manifest.recipe.corruption is not None:
        raise ValueError(
            f"corruption {corruption.kind!r}: data set {manifest.name!r} was built with"
            f" {manifest.recipe.corruption.kind!r} noise already; build it without, or leave `corruption` out"
        )
    # Examples lost at build take their draw too: the labels are those that the whole source would have got.
    labels_L = np.full(manifest.split(table.split).num_listed, UNKNOWN_LABEL, dtype=np.int64)
    labels_L[table.ordinals] = table.given_labels
    for lost in manifest.skipped:
        if lost.split == table.split:
            labels_L[lost.ordinal] = lost.label
    assert (labels_L != UNKNOWN_LABEL).all(), "index and manifest disagree about the examples of the split"
    noisy_L = corrupt(labels_L, table.num_classes, corruption)
    return dataclasses.replace(table, given_labels=noisy_L[table.ordinals])


def _read_index(root: Path, shard: Shard) -> pa.Table:
    path = root / shard.index.path
    try:
        if file_sha256(path) != shard.index.sha256:
            raise ValueError(f"index {str(path)!r} differs from the manifest's sha256; build the data set anew")
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
    except OSError as error:
        raise ValueError(f"index {str(path)!r} cannot be read: {error.strerror}") from None
    if not table.schema.equals(INDEX_SCHEMA) or table.num_rows != shard.num_examples:
        raise ValueError(f"index {str(path)!r} does not fit the manifest; build the data set anew")
    return table
