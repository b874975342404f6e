"""Logs of attempts: which there are, parts of them, and how they grow. Files, which outlive Ray's session.

A log only grows, except that one which had become too long has lost its middle (see trainer.output_log): whoever stood
beyond its end then goes on from there.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

from service.cluster.attempts import AttemptFolders
from trainer.run_schema import LOGS_DIR

LOG_NAME: Final = r"^(driver|rank_[0-9]{4,6})$"
"""Names of logs: of the driver and of each rank."""
BLOCK_BYTES: Final = 1 << 16

_PLACE = re.compile(r"([0-9]{1,9})-([0-9]{1,18})")
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@dataclass(frozen=True)
class LogFile:
    """One log of one attempt."""

    attempt: int
    name: str
    size_bytes: int


@dataclass(frozen=True)
class Place:
    """How far somebody has read: so many bytes of an attempt's log, and all of those of earlier attempts."""

    attempt: int
    offset: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The place that `str` has written; None if it is none."""
        match = _PLACE.fullmatch(text)
        return None if match is None else cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Piece:
    """What was read of a log."""

    text: str
    start: Place
    end: Place


class Logs:
    """Reads the logs of all attempts."""

    def __init__(self, folders: AttemptFolders) -> None:
        """`folders` knows where the attempts are."""
        self._folders = folders

    def files(self, job_id: str) -> list[LogFile]:
        """Logs of a job: by attempt, and by name."""
        found = (file for folder in self._folders.newest_first(job_id) for file in _files_in(folder))
        return sorted(found, key=lambda file: (file.attempt, file.name))

    def path(self, job_id: str, attempt: int, name: str) -> Path | None:
        """Where a log lies; None if there is none."""
        assert re.fullmatch(LOG_NAME, name)
        path = self._folders.path(job_id, attempt) / LOGS_DIR / f"{name}.log"
        return path if path.is_file() else None

    def read_on(self, job_id: str, name: str, place: Place, *, is_over: bool) -> Piece | None:
        """The next piece of an attempt's log; None where there is no more. `is_over`: nobody writes to it any more."""
        path = self.path(job_id, place.attempt, name)
        if path is None:
            return None
        with path.open("rb") as log:
            start = min(place.offset, log.seek(0, os.SEEK_END))
            log.seek(start)
            text, num_bytes = whole_characters(log.read(BLOCK_BYTES), is_last=is_over)
        if not num_bytes:
            return None
        return Piece(text, Place(place.attempt, start), Place(place.attempt, start + num_bytes))


def _files_in(folder: Path) -> Iterator[LogFile]:
    attempt = int(folder.name.removeprefix("attempt-"))
    for path in (folder / LOGS_DIR).glob("*.log"):
        if re.fullmatch(LOG_NAME, path.stem):
            yield LogFile(attempt, path.stem, path.stat().st_size)


def whole_characters(content: bytes, *, is_last: bool) -> tuple[str, int]:
    """The text of some bytes, and how many of them it is: one that begins at the end is left for later, unless they are
    the last. What is not UTF-8 becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(content)
    begun, _ = decoder.getstate()
    if is_last and begun and len(content) < BLOCK_BYTES:
        return text + decoder.decode(b"", final=True), len(content)
    return text, len(content) - len(begun)


def start_of_last_lines(log: BinaryIO, num_lines: int) -> int:
    """Offset at which the last lines (at least one) begin; an end without a newline is a line too."""
    end = start = log.seek(0, os.SEEK_END)
    while start > 0:
        begin = max(0, start - BLOCK_BYTES)
        log.seek(begin)
        block = log.read(start - begin)
        if start == end and block.endswith(b"\n"):
            num_lines += 1
        num_here = block.count(b"\n")
        if num_here >= num_lines:
            return begin + _newline_from_end(block, num_lines) + 1
        num_lines -= num_here
        start = begin
    return 0


def _newline_from_end(block: bytes, number: int) -> int:
    place = len(block)
    for _ in range(number):
        place = block.rfind(b"\n", 0, place)
    return place


def byte_range(header: str | None, size_bytes: int) -> range | None:
    """The bytes that a Range header asks for, empty if none of them is there; None, for all: without such a header, or
    where it asks for what we do not do (RFC 9110: then it is as if it had not been sent)."""
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return range(max(0, size_bytes - int(last)), size_bytes)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size_bytes) if last else size_bytes)


def blocks(path: Path, wanted: range) -> Iterator[bytes]:
    """These bytes of a file, block by block."""
    with path.open("rb") as file:
        file.seek(wanted.start)
        num_left = len(wanted)
        while num_left and (block := file.read(min(BLOCK_BYTES, num_left))):
            num_left -= len(block)
            yield block
