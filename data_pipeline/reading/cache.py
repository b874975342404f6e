"""Whole shards of remote data sets on a local disk, shared by all processes that are given the folder.

A shard lies there under its sha256, so two data sets that hold it share it. It is written to `<sha256>.part`, checked,
synced to the disk and renamed, so a file of the final name is whole. All locks are flocks and end with their process:

- `.lock`, exclusive: whoever decides what is in the folder (makes room, renames, removes), never while it downloads;
- a `.part`, exclusive: whoever is fetching it. One that nobody locks was left by a process that died;
- a shard, shared: a pin. Every open descriptor is one. What can be locked exclusively is in nobody's use.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum, auto
from pathlib import Path

from data_pipeline.manifest import FileEntry
from data_pipeline.storage import Storage
from data_pipeline.storage.atomic_file import flush

DIR_VARIABLE = "HUSH_CACHE_DIR"
BYTES_VARIABLE = "HUSH_CACHE_BYTES"
DEFAULT_BYTES = 50 * 10**9
CHUNK_BYTES = 8 << 20
"""Of one request: small enough that little is asked for again when it fails."""
LOCK_FILE = ".lock"
PART = ".part"
_OURS = re.compile(r"[0-9a-f]{64}(\.part)?")


class Fetched(Enum):
    """How an attempt to bring a shard into the cache ended."""

    HERE = auto()
    """It is in the cache."""
    BUSY = auto()
    """Another process, or thread, is fetching it."""
    NO_ROOM = auto()
    """The limit, or the disk, leaves no room beside the shards that are in use."""
    DAMAGED = auto()
    """What the storage holds is not what the manifest says."""
    STOPPED = auto()
    """It was asked to stop."""


class ShardCache:
    """Shards in a folder, of at most `max_bytes` together; those whose last use is longest ago go first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder.expanduser().absolute(), max_bytes
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever can write here can plant pictures

    @property
    def max_bytes(self) -> int:
        """Most bytes that all shards may have together."""
        return self._max_bytes

    def open(self, shard: FileEntry) -> int | None:
        """A descriptor to read the shard from, which keeps it here until it is closed; None: it is not here."""
        try:
            descriptor = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            status = os.fstat(descriptor)
            if status.st_nlink and status.st_size == shard.size_bytes:
                os.utime(descriptor)
                return descriptor
        except OSError:
            pass  # about to be removed
        os.close(descriptor)
        return None

    def fetch(self, shard: FileEntry, storage: Storage, should_stop: Callable[[], bool] = lambda: False) -> Fetched:
        """Bring the shard here, if it is not. OSError if it cannot be read, or the cache not be written."""
        part = self._begin(shard)
        if isinstance(part, Fetched):
            return part
        is_whole = False
        try:
            fetched = _download(shard, storage, part, should_stop)
            os.fsync(part)
            is_whole = fetched is Fetched.HERE
        finally:
            with self._deciding():
                if is_whole:
                    self._part(shard).replace(self._path(shard))
                else:
                    self._part(shard).unlink()
            os.close(part)
        flush(self._folder)
        return fetched

    def discard(self, shard: FileEntry) -> None:
        """Remove a shard whose bytes have rotted here, if that can be done."""
        with suppress(OSError), self._deciding():
            self._path(shard).unlink()

    def _path(self, shard: FileEntry) -> Path:
        return self._folder / shard.sha256

    def _part(self, shard: FileEntry) -> Path:
        return self._folder / f"{shard.sha256}{PART}"

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        descriptor = os.open(self._folder / LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _begin(self, shard: FileEntry) -> int | Fetched:
        """The shard's `.part`, locked, its bytes set aside on the disk; or why there is nothing to fetch."""
        with self._deciding():
            if _size_bytes(self._path(shard)) == shard.size_bytes:
                return Fetched.HERE
            if (part := _locked(self._part(shard), os.O_CREAT | os.O_RDWR)) is None:
                return Fetched.BUSY
            try:
                os.truncate(part, 0)
                if self._make_room(shard.size_bytes):
                    os.posix_fallocate(part, 0, max(1, shard.size_bytes))
                    os.truncate(part, shard.size_bytes)
                    return part
            except OSError:
                pass  # the disk is full before the cache is
            self._part(shard).unlink()
            os.close(part)
            return Fetched.NO_ROOM

    def _make_room(self, size_bytes: int) -> bool:
        """Remove what dead processes left, and shards, until so many bytes fit. False, and nothing is removed, if those
        in use leave no room."""
        files = [(path, path.stat()) for path in self._folder.iterdir() if _OURS.fullmatch(path.name)]
        excess = sum(status.st_size for _, status in files) + size_bytes - self._max_bytes
        with ExitStack() as locks:
            unused = []
            for path, status in sorted(files, key=lambda file: (file[0].suffix != PART, file[1].st_mtime_ns)):
                if excess > 0 and (descriptor := _locked(path)) is not None:
                    locks.callback(os.close, descriptor)
                    unused.append(path)
                    excess -= status.st_size
            if excess > 0:
                return False
            for path in unused:
                path.unlink()
        return True


def cache_from(environment: Mapping[str, str]) -> ShardCache | None:
    """The cache that HUSH_CACHE_DIR and HUSH_CACHE_BYTES ask for; None if the first is not set."""
    folder, limit = environment.get(DIR_VARIABLE), environment.get(BYTES_VARIABLE) or str(DEFAULT_BYTES)
    if not folder:
        return None
    if not (limit.isascii() and limit.isdigit() and int(limit)):
        raise ValueError(f"{BYTES_VARIABLE} = {limit!r} must be a whole number of bytes, above 0")
    try:
        return ShardCache(Path(folder), int(limit))
    except OSError as error:
        raise ValueError(f"{DIR_VARIABLE} = {folder!r} cannot be made: {error.strerror}") from None


def _download(shard: FileEntry, storage: Storage, descriptor: int, should_stop: Callable[[], bool]) -> Fetched:
    sha256 = hashlib.sha256()
    for offset in range(0, shard.size_bytes, CHUNK_BYTES):
        if should_stop():
            return Fetched.STOPPED
        chunk = storage.read_range(shard.path, offset, min(CHUNK_BYTES, shard.size_bytes - offset))
        sha256.update(chunk)
        os.pwrite(descriptor, chunk, offset)
    return Fetched.HERE if sha256.hexdigest() == shard.sha256 else Fetched.DAMAGED


def _locked(path: Path, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor that holds the file alone; None if another does."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _size_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
