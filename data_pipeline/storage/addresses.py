"""Paths and URLs that users and manifests give: what may be read, and what lies below what. Pure."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

REMOTE_SCHEMES = ("s3", "http", "https")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


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
