"""`s3://` and `http(s)://` as a Storage: the only file that knows obstore, which asks again when a server fails.

S3 takes credentials, region and endpoint from the usual AWS_* environment variables. Answers of 5xx, broken
connections and silent ones are tried again with exponential backoff; of a body cut short only the rest is asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import HTTPStore, S3Store

from data_pipeline.errors import StorageError
from data_pipeline.storage.addresses import inside
from data_pipeline.storage.patience import Patience

GAP_BYTES = 256 << 10
"""Ranges nearer than this are read in one request: so many bytes take less time than another answer of S3."""

_CREDENTIALS_SERVICE = "169.254.169.254"
"""Asked for credentials where the environment has none."""

_Answer = TypeVar("_Answer")
_Range = tuple[int, int]


class RemoteStorage:
    """Files under a URL."""

    def __init__(self, url: str, patience: Patience) -> None:
        self._url = url.rstrip("/")
        self._store = _open(self._url, patience)

    @property
    def url(self) -> str:
        return self._url

    def read(self, path: str) -> bytes:
        return self._ask(path, lambda name: obstore.get(self._store, name).bytes().to_bytes())

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        return self.read_ranges(path, [(offset, length)])[0]

    def read_ranges(self, path: str, ranges: Sequence[_Range]) -> list[bytes]:
        spans = joined(ranges, GAP_BYTES)
        try:
            pieces = self._read_spans(path, spans)
        except StorageError:
            # To ask for what lies past the end of a file that was cut short fails like any other request.
            size_bytes = self.size_bytes(path)
            if not spans or spans[-1][1] <= size_bytes:
                raise
            within = [(start, min(end, size_bytes)) for start, end in spans if start < size_bytes]
            pieces = self._read_spans(path, within)
        starts = [start for start, _ in spans]

        def part(offset: int, length: int) -> bytes:
            span = bisect_right(starts, offset) - 1
            if not length or span >= len(pieces):
                return b""
            skip = offset - starts[span]
            return bytes(pieces[span][skip : skip + length])

        return [part(offset, length) for offset, length in ranges]

    def write(self, path: str, data: bytes) -> None:
        self._put(path, data)

    def write_file(self, path: str, source: Path) -> None:
        self._put(path, source)

    def delete(self, path: str) -> None:
        self._refuse_to_write_over_http()
        try:
            self._ask(path, lambda name: obstore.delete(self._store, name))
        except FileNotFoundError:
            return

    def exists(self, path: str) -> bool:
        try:
            self.size_bytes(path)
        except FileNotFoundError:
            return False
        return True

    def size_bytes(self, path: str) -> int:
        return self._ask(path, lambda name: obstore.head(self._store, name)["size"])

    def _read_spans(self, path: str, spans: Sequence[_Range]) -> list[memoryview]:
        """Up to ten requests at a time. They are joined by us: obstore's own joining panics at a file cut short."""

        def get(name: str) -> list[memoryview]:
            starts, ends = [start for start, _ in spans], [end for _, end in spans]
            pieces = obstore.get_ranges(self._store, name, starts=starts, ends=ends, coalesce=0)
            return [memoryview(piece) for piece in pieces]

        return self._ask(path, get)

    def _put(self, path: str, content: bytes | Path) -> None:
        self._refuse_to_write_over_http()
        try:
            self._ask(path, lambda name: obstore.put(self._store, name, content))
        except FileNotFoundError:
            raise StorageError(f"{self._url}: there is no such bucket to write to") from None

    def _refuse_to_write_over_http(self) -> None:
        if isinstance(self._store, HTTPStore):
            raise ValueError(f"{self._url} can only be read; write to a folder or to s3://")

    def _ask(self, path: str, request: Callable[[str], _Answer]) -> _Answer:
        try:
            return request(inside(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"{self._url}/{path}: there is no such file") from None
        except BaseError as error:
            raise StorageError(
                f"{self._url}/{path}: {_reason(str(error), is_s3=isinstance(self._store, S3Store))}"
            ) from None


def joined(ranges: Sequence[_Range], gap_bytes: int) -> list[_Range]:
    """(start, end) of the requests that cover all (offset, length), in order: neighbours in one, gaps wider apart."""
    spans: list[_Range] = []
    for start, end in sorted((offset, offset + length) for offset, length in ranges if length):
        if spans and start - spans[-1][1] <= gap_bytes:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def _reason(told: str, *, is_s3: bool) -> str:
    """What the library says, in words for those of its errors that users meet."""
    if is_s3 and _CREDENTIALS_SERVICE in told:
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where the machine has a role"
    reason = told.partition("\n")[0][:500]  # what follows are the library's own structures
    if "error sending request" in told:
        doubt = "are AWS_ENDPOINT_URL and AWS_REGION right?" if is_s3 else "is the address right?"
        return f"no server answers; {doubt} ({reason})"
    return reason


def _open(url: str, patience: Patience) -> S3Store | HTTPStore:
    open_store = S3Store.from_url if url.startswith("s3:") else HTTPStore.from_url
    return open_store(
        url,
        client_options={
            "allow_http": True,  # said by http://, or by whoever set S3's endpoint on this machine
            "timeout": timedelta(minutes=10),
            "read_timeout": timedelta(seconds=patience.silence_s),
        },
        retry_config={
            "max_retries": 1000,  # time is what limits them
            "retry_timeout": timedelta(seconds=patience.retry_s),
            "backoff": {
                "init_backoff": timedelta(seconds=patience.first_wait_s),
                "max_backoff": timedelta(seconds=15),
                "base": 2,
            },
        },
    )
