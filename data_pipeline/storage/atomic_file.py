"""Files that are either wholly there or not at all: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_ASIDE = re.compile(r"\..+\.\d+-\d+\.part")


def write_aside(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path` and flush it to the disk; `publish` then gives it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        write(aside)
        flush(aside)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return aside


def leftovers(folder: Path) -> Iterator[Path]:
    """What killed processes were writing aside in this folder, and processes that live may be writing still."""
    return (path for path in folder.glob(".*.part") if _ASIDE.fullmatch(path.name))


def publish(aside: Path, path: Path) -> None:
    """Rename, and flush the folder, so that the name outlives a power cut."""
    aside.replace(path)
    flush(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part."""

    publish(write_aside(path, lambda aside: aside.write_bytes(data)), path)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have a file's bytes, or a folder's names, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
