"""A Storage of files under a local folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.storage.addresses import inside
from data_pipeline.storage.atomic_file import publish, write_aside, write_atomically


class LocalStorage:
    """Files under a local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    @property
    def url(self) -> str:
        return str(self._folder)

    def path(self, path: str) -> Path:
        """Where the file lies."""
        return self._folder / inside(path)

    def read(self, path: str) -> bytes:
        return self.path(path).read_bytes()

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        return self.read_ranges(path, [(offset, length)])[0]

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        descriptor = os.open(self.path(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return [os.pread(descriptor, length, offset) for offset, length in ranges]
        finally:
            os.close(descriptor)

    def write(self, path: str, data: bytes) -> None:
        write_atomically(self.path(path), data)

    def write_file(self, path: str, source: Path) -> None:
        target = self.path(path)
        publish(write_aside(target, lambda aside: _link_or_copy(source, aside)), target)

    def delete(self, path: str) -> None:
        self.path(path).unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        return self.path(path).is_file()

    def size_bytes(self, path: str) -> int:
        return self.path(path).stat().st_size


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for the file costs nothing; across disks, and where there are no hard links, it is copied."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
