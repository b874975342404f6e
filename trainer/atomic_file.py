"""Files that are either wholly there or not at all: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def write_aside(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path` and flush it to the disk; `publish` then gives it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        _flush(aside)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return aside


def publish(aside: Path, path: Path) -> None:
    """Rename, and flush the folder, so that the name outlives a power cut."""
    aside.replace(path)
    _flush(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part."""

    def write(aside: Path) -> None:
        aside.write_bytes(data)

    publish(write_aside(path, write), path)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
