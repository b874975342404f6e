"""The pictures of a job's examples, out of the shards they were trained from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from data_pipeline.examples import ExampleTable, open_split
from data_pipeline.manifest import Manifest
from data_pipeline.reading.reader import ShardReader

MAX_TABLES = 2
"""Data sets whose tables are kept: one of a million examples takes 80 MB, and a second to read."""
SPLIT = "train"
"""Tracked examples are of this split."""
UNKNOWN_TYPE = "application/octet-stream"

WEBP = "image/webp"
_SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
}


MEDIA_TYPES = tuple(dict.fromkeys((*_SIGNATURES.values(), WEBP, UNKNOWN_TYPE)))
"""All that `media_type_of` may say."""


@dataclass(frozen=True)
class Picture:
    """A picture as it is stored."""

    content: bytes
    media_type: str


class Pictures:
    """Finds pictures by the names of their examples."""

    def __init__(self, load: Callable[[str], Manifest]) -> None:
        """`load` reads a manifest, or raises ValueError or StorageError; it checks whether it may be read, too."""
        self._load = load
        self._tables: OrderedDict[tuple[str, str], ExampleTable] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, manifest: str, example_id: str) -> Picture | None:
        """The picture of a training example; None if the data set has no such example.

        ValueError if the data set cannot be read any more, BadImageError if the picture cannot, StorageError if the
        storage does not answer.
        """
        table = self._table(self._load(manifest))
        row = table.example_ids.find(example_id)
        if row is None:
            return None
        with closing(ShardReader(table)) as reader:
            content = reader.read(row)
        return Picture(content, media_type_of(content))

    def _table(self, manifest: Manifest) -> ExampleTable:
        with self._lock:  # so that a page of pictures reads its table once
            key = (manifest.url, manifest.digest)
            table = self._tables.pop(key, None) or open_split(manifest, SPLIT)
            self._tables[key] = table
            if len(self._tables) > MAX_TABLES:
                self._tables.popitem(last=False)
            return table


def media_type_of(content: bytes) -> str:
    """By its first bytes. What is not known to be a picture is never shown as one, nor as a document."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return WEBP
    return next((kind for start, kind in _SIGNATURES.items() if content.startswith(start)), UNKNOWN_TYPE)
