"""Ids for examples that are known by a path or by somebody else's key. Pure."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

MAX_CHARS = 80
_DIGEST_CHARS = 10
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_,=+@-]")


def example_ids(paths: Sequence[str]) -> list[str]:
    """For each of these different paths an id: the path without suffix and its slashes as dashes, where that says all.

    Other characters become underscores. Where some did, where the path is too long or where two would get the same id,
    a digest of the path goes behind: ids stay different, and the same whenever the set is built.
    """
    plain = [str(PurePosixPath(path).with_suffix("")).replace("/", "-") for path in paths]
    times = Counter(plain)
    return [
        name if times[name] == 1 and len(name) <= MAX_CHARS and not _NOT_ALLOWED.search(name) else _digested(name, path)
        for name, path in zip(plain, paths, strict=True)
    ]


def readable(path: str) -> str:
    """The path for people and for JSON: what cannot be printed, bytes that are no UTF-8 among it, is written out."""
    return path if path.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path)


def _digested(name: str, path: str) -> str:
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGEST_CHARS]
    return f"{_NOT_ALLOWED.sub('_', name)[: MAX_CHARS - _DIGEST_CHARS - 1]}-{digest}"
