"""The pictures of a job's examples, out of the shards of its data set."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from anyio import CapacityLimiter

from data_pipeline.examples import ExampleTable, open_split
from data_pipeline.manifest import Manifest
from data_pipeline.reading.reader import ShardReader
from data_pipeline.storage.local import LocalStorage

MAX_ROWS = 3_000_000
"""Examples whose places are kept: a million takes 80 MB, and a second to read."""
MAX_PICTURE_BYTES = 64 << 20
NUM_READERS = 4
"""Threads for pictures. Few: a storage that is slow must not keep other requests from theirs."""
SPLIT = "train"
"""Tracked examples are of this split."""
WEBP = "image/webp"

_SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
}

MEDIA_TYPES = tuple(dict.fromkeys((*_SIGNATURES.values(), WEBP)))
"""What pictures are."""


@dataclass(frozen=True)
class Picture:
    """A picture as it is stored."""

    content: bytes
    media_type: str


@dataclass
class _Opened:
    """The table of a data set, which whoever needs it first reads, while others wait for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    table: ExampleTable | None = None

    @property
    def num_rows(self) -> int:
        return 0 if self.table is None else len(self.table)


class Pictures:
    """Finds pictures by the names of their examples."""

    def __init__(self, load: Callable[[str], Manifest], roots: tuple[Path, ...]) -> None:
        """`load` reads a manifest, or raises ValueError or StorageError; it checks whether it may be read, too. Files
        of this machine are read below `roots` only, wherever symlinks lead."""
        self._load, self._roots = load, roots
        self._opened: OrderedDict[tuple[str, str], _Opened] = OrderedDict()
        self._lock = threading.Lock()
        self.readers = CapacityLimiter(NUM_READERS)
        """Threads for whoever asks for a picture."""

    def find(self, manifest: str, example_id: str) -> Picture | None:
        """The picture of a training example; None if the data set has no such example.

        ValueError if the data set or the picture cannot be read any more, StorageError if the storage does not answer.
        """
        table = self._table(self._load(manifest))
        row = table.example_ids.find(example_id)
        if row is None:
            return None
        self._check(table, row)
        with closing(ShardReader(table)) as reader:
            content = reader.read(row)
        kind = media_type_of(content)
        if kind is None:
            raise ValueError(f"example {example_id!r} is no picture of a kind that is shown: {', '.join(MEDIA_TYPES)}")
        return Picture(content, kind)

    def _table(self, manifest: Manifest) -> ExampleTable:
        key = (manifest.url, manifest.digest)
        with self._lock:
            opened = self._opened.setdefault(key, _Opened())
            self._opened.move_to_end(key)
        with opened.lock:
            if opened.table is None:
                opened.table = open_split(manifest, SPLIT)
        with self._lock:
            while len(self._opened) > 1 and sum(kept.num_rows for kept in self._opened.values()) > MAX_ROWS:
                self._opened.popitem(last=False)
        return opened.table

    def _check(self, table: ExampleTable, row: int) -> None:
        """Before anything is read of a file that its owner may have made to mislead us."""
        if table.lengths[row] > MAX_PICTURE_BYTES:
            raise ValueError(f"it has {table.lengths[row]} bytes, and at most {MAX_PICTURE_BYTES} are shown")
        if isinstance(table.storage, LocalStorage):
            shard = table.storage.path(table.shard_of(row)).resolve()
            if not any(shard.is_relative_to(root) for root in self._roots):
                raise ValueError(f"shard {table.shard_of(row)} lies outside of HUSH_ALLOWED_ROOTS")


def media_type_of(content: bytes) -> str | None:
    """By its first bytes; None for what is not known to be a picture, and never shown as one."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return WEBP
    return next((kind for start, kind in _SIGNATURES.items() if content.startswith(start)), None)
