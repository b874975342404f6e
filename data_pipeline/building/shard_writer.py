"""One shard: a plain ustar file that stock `webdataset` reads, and the index of what lies where in it.

Per sample, in this order: `<id>.<suffix>` the image's bytes untouched, `<id>.cls` the given label as text, `<id>.json`
with both labels, the ordinal and, where the picture is a file of the raw data set, its path there. mtime, uid and gid
are 0: equal examples give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import xxhash

from data_pipeline.building.shard_index import INDEX_SUFFIX, ShardIndex
from data_pipeline.examples import Place
from data_pipeline.manifest import FileEntry, Shard
from data_pipeline.sources.base import SourceExample

SHARD_SUFFIX = ".tar"


class ShardWriter:
    """Writes `<name>.tar` and `<name>.index.arrow` into a folder; `finish` syncs both to disk."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._file = (folder / f"{name}{SHARD_SUFFIX}").open("wb")
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0
        self._index = ShardIndex()

    def __len__(self) -> int:
        return len(self._index)

    def add(self, example: SourceExample, ordinal: int, data: bytes, shape: tuple[int, int]) -> None:
        """Append a sample; `shape` is (height, width)."""
        facts: dict[str, int | str | None] = {
            "clean_label": example.clean_label,
            "given_label": example.given_label,
            "ordinal": ordinal,
        }
        if example.file is not None:
            facts["file"] = example.file
        offset = self._member(f"{example.example_id}.{example.suffix}", data)
        self._member(f"{example.example_id}.cls", str(example.given_label).encode())
        self._member(f"{example.example_id}.json", json.dumps(facts).encode())
        self._index.add(example, ordinal, Place(offset, len(data), xxhash.xxh3_64_intdigest(data), *shape))

    def finish(self) -> Shard:
        """End the tar, write the index, and describe both."""
        self._write(bytes(-(self._size_bytes + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE))
        _sync_and_close(self._file)
        content = self._index.to_bytes()
        index = FileEntry(
            path=f"{self._name}{INDEX_SUFFIX}", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
        file = (self._folder / index.path).open("wb")
        file.write(content)
        _sync_and_close(file)
        return Shard(
            path=f"{self._name}{SHARD_SUFFIX}",
            size_bytes=self._size_bytes,
            sha256=self._sha256.hexdigest(),
            num_examples=len(self),
            index=index,
        )

    def close(self) -> None:
        """Close the tar, finished or not."""
        self._file.close()

    def _member(self, name: str, data: bytes) -> int:
        """Append a file; the offset of its first byte."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._write(header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        offset = self._size_bytes
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._size_bytes += len(data)


def _sync_and_close(file: io.BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
