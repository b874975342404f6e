"""Logs of a job: a list of them, one to read by ranges of bytes, or one to follow as Server-Sent Events."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from functools import partial
from http import HTTPStatus
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from service.api.context import Context, InContext, KnownJob
from service.api.errors import ProblemError, problems
from service.api.file_part import WantedRange, file_part
from service.api.routes.events import EVENT_STREAM, KEEP_ALIVE_S, MESSAGE_SCHEMA
from service.api.views import job_view, log_piece_view, log_view
from service.api.visit import Visit
from service.jobs.records import JobRecord
from service.jobs.states import TERMINAL_STATES
from service.results.logs import LOG_NAME, Place, start_of_last_lines
from service.schemas import FieldProblem, LogView

router = APIRouter(prefix="/jobs", tags=["jobs"])

TEXT = "text/plain"
POLL_S = 0.3
"""Seconds between two looks at a log that is followed."""
ASK_S = 1.0
"""Seconds between two questions to the database, whether its job has ended or gone on to another attempt."""

_STREAM_DOC = """\
One log as it grows, of the current attempt and of those that follow it, until the job has ended, or the
token it is read with. Messages: `event: log`, a LogPiece, with an id; `event: end`, the JobView, last. A client that
was cut off sends the same request with `Last-Event-ID` and goes on at the very byte."""

Attempt = Annotated[int, Path(ge=1, le=2**31 - 1, description="Number of an attempt, from 1.")]
Name = Annotated[str, Path(pattern=LOG_NAME, description="`driver`, or a rank: `rank_0000`.")]


@router.get(
    "/{job_id}/logs",
    response_model=list[LogView],
    responses={
        200: {
            "description": f"The job's logs; or, with `follow=true` or `Accept: {EVENT_STREAM}`: {_STREAM_DOC}",
            "content": {EVENT_STREAM: {"schema": MESSAGE_SCHEMA}},
        },
        **problems(404, 422),
    },
    summary="What a job printed",
)
def get_logs(
    request: Request,
    job: KnownJob,
    context: InContext,
    *,
    follow: Annotated[bool, Query(description="Follow one log.")] = False,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Follow from this attempt on.")] = None,
    rank: Annotated[int, Query(ge=0, le=999_999, description="Follow this rank.")] = 0,
    name: Annotated[str | None, Query(pattern=LOG_NAME, description="Follow this log, whatever `rank` says.")] = None,
    last_event_id: Annotated[
        str | None,
        Header(pattern=r"^[0-9]{1,9}-[0-9]{1,18}$", description="Of a stream: continue after this message."),
    ] = None,
) -> list[LogView] | StreamingResponse:
    """Logs of all attempts, each with all that a rank or the driver wrote on its standard output and error."""
    if not follow and EVENT_STREAM not in request.headers.get("accept", ""):
        return [log_view(job.id, file) for file in context.logs.files(job.id)]
    place = (Place.parse(last_event_id) if last_event_id else None) or Place(attempt or job.attempt, 0)
    log = name or f"rank_{rank:04d}"
    _check(job, place.attempt, log)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    stream = _stream(Visit(request, context), context, job, log, place)
    return StreamingResponse(stream, media_type=EVENT_STREAM, headers=headers)


@router.get(
    "/{job_id}/logs/{attempt}/{name}",
    response_class=StreamingResponse,
    responses={
        200: {"description": "The log as it is now.", "content": {TEXT: {"schema": {"type": "string"}}}},
        206: {"description": "The bytes that `Range` asks for.", "content": {TEXT: {"schema": {"type": "string"}}}},
        **problems(404, 416, 422),
    },
    summary="Read a log",
)
def get_log(
    job: KnownJob,
    attempt: Attempt,
    name: Name,
    context: InContext,
    *,
    tail_lines: Annotated[
        int | None, Query(ge=1, le=1_000_000, description="Only the last lines; `Range` then does not count.")
    ] = None,
    wanted: WantedRange = None,
) -> StreamingResponse:
    """All that a rank or the driver wrote so far, or a part of it."""
    path = context.logs.path(job.id, attempt, name)
    if path is None:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"There is no log {name!r} of attempt {attempt}, or not yet.")
    part = None
    if tail_lines is not None:
        with path.open("rb") as log:
            part = range(start_of_last_lines(log, tail_lines), path.stat().st_size)
    return file_part(path, wanted, f"{TEXT}; charset=utf-8", {"Cache-Control": "no-cache"}, part)


def _check(job: JobRecord, attempt: int, name: str) -> None:
    """Refuse to wait for what will never be there."""
    if attempt > job.attempt:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"There is no attempt {attempt}; the newest is {job.attempt}.")
    num_workers = job.spec.resources.num_workers
    number = re.sub(r"\D", "", name)
    if number and int(number) >= num_workers:
        wrong = FieldProblem(field="rank", value=number, message=f"must be below resources.num_workers, {num_workers}")
        raise ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, f"rank = {number}: {wrong.message}", errors=[wrong])


async def _stream(visit: Visit, context: Context, job: JobRecord, name: str, place: Place) -> AsyncIterator[bytes]:
    sent_at = asked_at = time.monotonic()
    while await visit.may_go_on():
        # A job that has ended, or is at a later attempt, was so before its log is read to the end here.
        has_ended, is_over = job.state in TERMINAL_STATES, place.attempt < job.attempt
        read_on = partial(context.logs.read_on, job.id, name, place, is_over=is_over or has_ended)
        piece = await anyio.to_thread.run_sync(read_on, limiter=context.watch.readers)
        if piece is not None:
            place, sent_at = piece.end, time.monotonic()
            data = log_piece_view(name, piece).model_dump_json()
            yield format_sse_event(event="log", id=str(place), data_str=data)
        elif is_over:
            place = Place(place.attempt + 1, 0)
        elif has_ended:
            yield format_sse_event(event="end", data_str=job_view(job, context.settings.mlflow_uri).model_dump_json())
            return
        elif time.monotonic() - asked_at >= ASK_S:
            asked_at = time.monotonic()
            job = await anyio.to_thread.run_sync(_now, context, job, limiter=context.watch.readers)
        elif time.monotonic() - sent_at >= KEEP_ALIVE_S:
            sent_at = time.monotonic()
            yield KEEPALIVE_COMMENT
        else:
            await anyio.sleep(POLL_S)


def _now(context: Context, job: JobRecord) -> JobRecord:
    now = context.store.get(job.id)
    assert now is not None, "jobs are never deleted"
    return now
