"""Tracked examples of a job: sorted, as a file, one over its epochs, and its picture."""

from __future__ import annotations

import logging
from functools import partial
from http import HTTPStatus
from typing import Annotated, Literal

import anyio.to_thread
from fastapi import APIRouter, Path, Query
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask

from data_pipeline.errors import StorageError
from service.api.context import Context, InContext, KnownJob
from service.api.errors import ProblemError, away, problems
from service.api.routes.results import Epoch, newest_epoch, not_there_yet
from service.api.views import example_links
from service.jobs.records import JobRecord
from service.result_schemas import ExampleHistory, ExamplePage, ExampleSort
from service.results.example_tables import ExampleQuery
from service.results.export import BusyError, pieces
from service.results.pictures import MEDIA_TYPES
from trainer.run_schema import EXAMPLES_DIR

router = APIRouter(prefix="/jobs/{job_id}/examples", tags=["results"])

logger = logging.getLogger(__name__)

CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
STORAGE_RETRY_S = 10
EXPORT_RETRY_S = 5
_BINARY = {"schema": {"type": "string", "format": "binary"}}

Cursor = Annotated[
    str | None, Query(pattern=r"^[0-9]{1,7}-[0-9]{1,9}$", description="`next_cursor` of the page before.")
]
ExampleId = Annotated[str, Path(min_length=1, max_length=1000, description="Name of the example in its data set.")]


@router.get(
    "",
    response_model=ExamplePage,
    responses={
        200: {
            "description": "A page; with `format=csv` or `format=parquet` a file of all that match, in this order.",
            "content": {CSV: {"schema": {"type": "string"}}, PARQUET: _BINARY},
        },
        **problems(404, 422, 503),
    },
    summary="Examples, sorted by suspicion or ambiguity",
)
def get_examples(
    job: KnownJob,
    context: InContext,
    *,
    epoch: Epoch = None,
    sort: Annotated[ExampleSort, Query(description="Column to sort by.")] = "suspicion",
    order: Annotated[Literal["asc", "desc"], Query(description="Smallest or largest first.")] = "desc",
    given_label: Annotated[int | None, Query(ge=0, le=1_000_000, description="Only examples of this class.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most this many on a page.")] = 50,
    cursor: Cursor = None,
    output: Annotated[
        Literal["json", "csv", "parquet"], Query(alias="format", description="`csv`, `parquet`: all, as a file.")
    ] = "json",
) -> ExamplePage | StreamingResponse:
    """Tracked examples after an epoch. The pages of one walk show one epoch, also while newer ones come in."""
    offset = 0
    if cursor is not None:
        epoch, offset = (int(part) for part in cursor.split("-"))
    epoch = epoch or newest_epoch(job.id, context, EXAMPLES_DIR, "parquet")
    query = ExampleQuery(sort, order == "asc", given_label)
    if epoch is not None and output != "json":
        return _file(job, context, epoch, query, output)
    found = context.results.examples(job.id, epoch, query, offset, limit) if epoch else None
    if epoch is None or found is None:
        raise not_there_yet("table of examples", epoch)
    end = offset + len(found.items)
    more = found.items and end < found.total
    return ExamplePage(
        epoch=epoch, total=found.total, items=found.items, next_cursor=f"{epoch}-{end}" if more else None
    )


def _file(
    job: JobRecord, context: Context, epoch: int, query: ExampleQuery, output: Literal["csv", "parquet"]
) -> StreamingResponse:
    try:
        file = context.exports.make(lambda: context.results.table(job.id, epoch, query), output)
    except BusyError:
        raise away("part that makes files", EXPORT_RETRY_S) from None
    if file is None:
        raise not_there_yet("table of examples", epoch)
    headers = {"Content-Disposition": f'attachment; filename="{job.id}-epoch-{epoch}.{output}"'}
    kind = f"{CSV}; charset=utf-8" if output == "csv" else PARQUET
    return StreamingResponse(pieces(file), media_type=kind, headers=headers, background=BackgroundTask(file.close))


# Names of examples may hold slashes, so the longer path comes first.
@router.get(
    "/{example_id:path}/image",
    response_class=Response,
    responses={
        200: {"description": "The picture as it is stored.", "content": dict.fromkeys(MEDIA_TYPES, _BINARY)},
        **problems(404, 422, 503),
    },
    summary="The picture of an example",
)
async def get_image(job: KnownJob, example_id: ExampleId, context: InContext) -> Response:
    """The picture itself, out of its shard."""
    find = partial(context.pictures.find, job.spec.data.manifest, example_id)
    try:
        picture = await anyio.to_thread.run_sync(find, limiter=context.pictures.readers)
    except StorageError as error:
        logger.warning("the picture of %r could not be fetched: %s", example_id, error)
        raise away("storage of the data", STORAGE_RETRY_S) from None
    except ValueError as error:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"The picture cannot be read: {error}.") from None
    if picture is None:
        raise _unknown(example_id, "the data set")
    headers = {"Cache-Control": "private, max-age=3600", "Vary": "Authorization", "X-Content-Type-Options": "nosniff"}
    return Response(picture.content, media_type=picture.media_type, headers=headers)


@router.get("/{example_id:path}", responses=problems(404, 422), summary="One example over the epochs")
def get_example(job: KnownJob, example_id: ExampleId, context: InContext) -> ExampleHistory:
    """All that is known of a tracked example, after each epoch that was recorded."""
    history = context.results.history(job.id, example_id)
    if not history:
        raise _unknown(example_id, "the job's tracked examples")
    return ExampleHistory(example_id=example_id, history=history, links=example_links(job.id, example_id))


def _unknown(example_id: str, where: str) -> ProblemError:
    return ProblemError(HTTPStatus.NOT_FOUND, f"There is no example {example_id[:100]!r} among {where}.")
