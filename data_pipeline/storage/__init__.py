"""Where a data set's files lie: a local folder, `s3://`, or `http(s)://`. Nothing else is opened, `pipe:` least of all.

A path is relative to the storage's root, with forward slashes, and never leaves it. A file that is not there is a
FileNotFoundError; a storage that cannot be reached, or refuses us, a StorageError.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from data_pipeline.storage.addresses import is_remote
from data_pipeline.storage.local import LocalStorage
from data_pipeline.storage.patience import USUAL_PATIENCE, Patience


class Storage(Protocol):
    """Files under one root. Safe to share between threads, not between processes: each calls `storage_for`."""

    @property
    def url(self) -> str:
        """The root: an absolute folder, or a URL without a slash at the end. `storage_for(url)` is this storage."""
        ...

    def read(self, path: str) -> bytes:
        """The whole file."""
        ...

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer where the file ends."""
        ...

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each (offset, length), as `read_range`; neighbours come in one request."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Make or replace a file. Readers see all of it or nothing."""
        ...

    def write_file(self, path: str, source: Path) -> None:
        """`write` with the content of a local file, which is not held in memory, nor ever changed afterwards."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""
        ...

    def exists(self, path: str) -> bool:
        """Whether the file is there."""
        ...

    def size_bytes(self, path: str) -> int:
        """Size of the file."""
        ...


def storage_for(url: str | Path, patience: Patience = USUAL_PATIENCE) -> Storage:
    """The storage whose root is this folder or URL; ValueError for what is neither a path, s3:// nor http(s)://."""
    if not is_remote(url):
        return LocalStorage(Path(url))
    from data_pipeline.storage.remote import RemoteStorage  # noqa: PLC0415 -- who reads local files needs no client

    return RemoteStorage(str(url), patience)
