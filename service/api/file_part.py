"""A file as an answer, or the range of its bytes that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import Header
from fastapi.responses import StreamingResponse

from service.api.errors import ProblemError
from service.results.logs import blocks, byte_range

WantedRange = Annotated[
    str | None,
    Header(alias="Range", description="One range of bytes, e.g. `bytes=1000-`, to read on where one stopped."),
]


def file_part(
    path: Path, wanted: str | None, media_type: str, headers: Mapping[str, str], part: range | None = None
) -> StreamingResponse:
    """The whole file, the range of it that is `wanted`, or, whatever that says, `part`. FileNotFoundError if the file
    is not there; a 416 problem if it has nothing of that range."""
    size_bytes, status = path.stat().st_size, HTTPStatus.OK
    all_headers = {"Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff", **headers}
    if part is None and (part := byte_range(wanted, size_bytes)) is not None:
        if not part:
            detail = f"The file has {size_bytes} bytes; Range = {wanted!r} begins beyond them."
            unsatisfied = {"Content-Range": f"bytes */{size_bytes}"}
            raise ProblemError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, detail, headers=unsatisfied)
        status = HTTPStatus.PARTIAL_CONTENT
        all_headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size_bytes}"
    part = range(size_bytes) if part is None else part
    all_headers["Content-Length"] = str(len(part))
    return StreamingResponse(blocks(path, part), status, all_headers, media_type=media_type)
