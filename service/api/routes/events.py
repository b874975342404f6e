"""Events of a job: a page as JSON, or a stream of Server-Sent Events, as the Accept header asks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from service.api.context import Context, InContext, KnownJob
from service.api.errors import problems
from service.api.views import event_view, job_view
from service.api.visit import Visit
from service.jobs.records import EventRecord
from service.jobs.states import TERMINAL_STATES
from service.schemas import EventPage
from trainer.run_schema import Progress

router = APIRouter(prefix="/jobs", tags=["jobs"])

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_S = 15.0
BATCH = 200
MAX_EVENT_ID = 2**63 - 1

MESSAGE_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {
        "event": {"type": "string"},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}
"""One message of a stream, as OpenAPI describes it."""

_STREAM_DOC = """\
A stream that ends after the job has ended, or with the token it is read with. Messages: `event: state` and
`event: epoch` with an id and an EventView; `event: progress` without id, a Progress, when it changes; `event: end`, the
JobView, last. A client that was cut off sends `Last-Event-ID` and misses nothing."""


@router.get(
    "/{job_id}/events",
    response_model=EventPage,
    responses={
        200: {
            "description": f"A page of events; or, with `Accept: {EVENT_STREAM}`: {_STREAM_DOC}",
            "content": {EVENT_STREAM: {"schema": MESSAGE_SCHEMA}},
        },
        **problems(404, 422),
    },
    summary="What happened to a job",
)
def get_events(
    request: Request,
    job: KnownJob,
    context: InContext,
    *,
    after: Annotated[int, Query(ge=0, le=MAX_EVENT_ID, description="Only events with a higher id.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most this many on a page.")] = 200,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=MAX_EVENT_ID, description="Of a stream: continue after this event.")
    ] = None,
) -> EventPage | StreamingResponse:
    """Events in the order they happened, as a page or as a stream."""
    if EVENT_STREAM in request.headers.get("accept", ""):
        start = after if last_event_id is None else last_event_id
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        stream = _stream(Visit(request, context), context, job.id, start)
        return StreamingResponse(stream, media_type=EVENT_STREAM, headers=headers)
    found = context.store.follow(job.id, after, limit)
    items = [event_view(event) for event in found[1]] if found else []
    return EventPage(items=items, next_after=items[-1].id if items else None)


async def _stream(visit: Visit, context: Context, job_id: str, after: int) -> AsyncIterator[bytes]:
    progress: Progress | None = None
    sent_at = time.monotonic()
    with context.watch.following(job_id) as follower:
        while await visit.may_go_on():
            if not await follower.wait(max(0.0, sent_at + KEEP_ALIVE_S - time.monotonic())):
                sent_at = time.monotonic()
                yield KEEPALIVE_COMMENT
                continue
            news = await follower.read(after, BATCH)
            messages = [_event_message(event) for event in news.events]
            if news.events:
                after = news.events[-1].id
            if news.progress is not None and news.progress != progress:
                progress = news.progress
                messages.append(format_sse_event(event="progress", data_str=progress.model_dump_json()))
            ended = len(news.events) < BATCH and news.state in TERMINAL_STATES
            if ended:
                messages.append(
                    await anyio.to_thread.run_sync(_end_message, context, job_id, limiter=context.watch.readers)
                )
            if messages:
                yield b"".join(messages)
                sent_at = time.monotonic()
            if ended:
                return


def _event_message(event: EventRecord) -> bytes:
    return format_sse_event(event=event.kind, id=str(event.id), data_str=event_view(event).model_dump_json())


def _end_message(context: Context, job_id: str) -> bytes:
    job = context.store.get(job_id)
    assert job is not None, "jobs are never deleted"
    return format_sse_event(event="end", data_str=job_view(job, context.settings.mlflow_uri).model_dump_json())
