"""Where a data set's files lie: a local folder, `s3://`, or `http(s)://`. Nothing else is opened, `pipe:` least of all.

A path is relative to the storage's root, with forward slashes, and never leaves it. A file that is not there is a
FileNotFoundError; a storage that cannot be reached, or refuses us, a StorageError.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import unquote, urlsplit

REMOTE_SCHEMES = ("s3", "http", "https")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


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


@dataclass(frozen=True)
class Patience:
    """How long a remote storage is asked again, with exponential backoff, before it counts as away."""

    retry_s: float = 180.0
    """Seconds from the first try of a request; after them no other try begins."""
    first_wait_s: float = 0.1
    """Seconds before the second try; then twice as long each time, up to 15, less a random part."""
    silence_s: float = 20.0
    """A connection that sends nothing for so many seconds is cut, and what is missing is asked for again."""


USUAL_PATIENCE = Patience()


def storage_for(url: str | Path, patience: Patience = USUAL_PATIENCE) -> Storage:
    """The storage whose root is this folder or URL; ValueError for what is neither a path, s3:// nor http(s)://."""
    if not is_remote(url):
        return LocalStorage(Path(url))
    from data_pipeline.remote_storage import RemoteStorage  # noqa: PLC0415 -- who reads local files needs no client

    return RemoteStorage(str(url), patience)


def split_url(url: str | Path) -> tuple[str, str]:
    """(root, name) of a file: `s3://bucket/set/manifest.json` -> (`s3://bucket/set`, `manifest.json`)."""
    if not is_remote(url):
        path = Path(url)
        return str(path.parent), path.name
    root, _, name = str(url).rpartition("/")
    if root.count("/") < 2 or not name:
        raise ValueError(f"{str(url)!r} names no file")
    return root, name


def inside(path: str) -> str:
    """The path itself; ValueError if it is not relative, or leads out of the root."""
    if (match := _SCHEME.match(path)) is not None:
        raise ValueError(f"path {path!r}: {match[1]}: is not read inside a data set; its files lie beside its manifest")
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError(f"path {path!r} must be relative and stay inside the data set's folder")
    return path


def is_remote(url: str | Path) -> bool:
    """False: a path. True: a URL of a scheme that is read; ValueError if it is any other, or says too much."""
    match = _SCHEME.match(url) if isinstance(url, str) else None
    if match is None:
        return False
    if match[1] not in REMOTE_SCHEMES:
        raise ValueError(f"{url!r}: {match[1]}: is not read; give a path, s3://, http:// or https://")
    if _CONTROL.search(str(url)):
        raise ValueError(f"{url!r}: control characters are not allowed in an address")
    try:
        parts = urlsplit(str(url))
        parts.port  # noqa: B018 -- raises when it is no port
    except ValueError as error:
        raise ValueError(f"{url!r} is not an address: {error}") from None
    if not parts.hostname:
        raise ValueError(f"{url!r} names no {'bucket' if match[1] == 's3' else 'host'}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{match[1]} address of {parts.hostname!r}: user, password, ? and # are not allowed in it")
    return True


def url_parts(url: str) -> tuple[str, ...]:
    """(scheme, host, port, folder, …, name): a URL is below another if that one's parts begin its own. ValueError if
    parts of its path could be read in two ways."""
    assert is_remote(url)
    split = urlsplit(url)
    names = split.path.rstrip("/").split("/")[1:]
    for name in names:
        plain = unquote(name).strip()  # blanks that end an address are dropped by whoever asks for it
        if plain in {"", ".", ".."} or "/" in plain or "\\" in plain:
            raise ValueError(f"{url!r}: {name!r} cannot stand between the slashes of a path")
    host = split.netloc if split.scheme == "s3" else (split.hostname or "")
    port = split.port or {"http": 80, "https": 443}.get(split.scheme, 0)
    return (split.scheme, host, str(port), *names)


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
        _replace(self.path(path), lambda aside: aside.write_bytes(data))

    def write_file(self, path: str, source: Path) -> None:
        _replace(self.path(path), lambda aside: _link_or_copy(source, aside))

    def delete(self, path: str) -> None:
        self.path(path).unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        return self.path(path).is_file()

    def size_bytes(self, path: str) -> int:
        return self.path(path).stat().st_size


def _replace(target: Path, fill: Callable[[Path], object]) -> None:
    """Make a file beside the target, sync it to the disk and give it its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        fill(aside)
        _sync(aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(target.parent)


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for the file costs nothing; across disks, and where there are no hard links, it is copied."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def sync_folder(folder: Path) -> None:
    """Make renames in the folder survive a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
