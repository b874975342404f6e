"""Data sets: register a manifest under a name, list, look, and check all its files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from data_pipeline.errors import StorageError
from service.api.admission import readable_manifest
from service.api.auth import InPrincipal
from service.api.context import InContext
from service.api.errors import ProblemError, problems
from service.api.routes.jobs import ID_PATTERN, Limit, json_only
from service.data_set_schemas import CheckView, DataSetPage, DataSetView, NewDataSet
from service.data_sets.summary import summary_of
from service.schemas import API, FieldProblem
from service.store.data_sets import STALE_S, DataSetRecord, NameTakenError

router = APIRouter(prefix="/data-sets", tags=["data sets"])


def _known_data_set(
    name: Annotated[str, Path(description="Name of the data set.")], context: InContext, principal: InPrincipal
) -> DataSetRecord:
    found = None if "\0" in name or len(name) > 100 else context.data_sets.find(principal.tenant, name)
    if found is None:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"There is no data set {name[:100]!r}.")
    return found


KnownDataSet = Annotated[DataSetRecord, Depends(_known_data_set)]


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    dependencies=[Depends(json_only)],
    responses={
        201: {"headers": {"Location": {"description": "Where the data set is.", "schema": {"type": "string"}}}},
        **problems(400, 409, 413, 415, 422),
    },
    summary="Register a data set",
)
def create_data_set(new: NewDataSet, context: InContext, principal: InPrincipal, response: Response) -> DataSetView:
    """Read a manifest and keep what it says under a name. Its files are looked at by a check."""
    settings = context.settings
    try:
        manifest = readable_manifest(new.manifest, settings.roots, settings.allowed_urls)
    except (ValueError, StorageError) as error:
        wrong = FieldProblem(field="manifest", value=repr(new.manifest)[:200], message=str(error))
        detail = f"manifest = {wrong.value}: {error}"
        raise ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=[wrong]) from None
    now = datetime.now(UTC)
    try:
        made = context.data_sets.create(principal.tenant, new.name, new.manifest, summary_of(manifest), now)
    except NameTakenError:
        detail = f"There is a data set {new.name!r} already; choose another name."
        raise ProblemError(HTTPStatus.CONFLICT, detail) from None
    response.headers["Location"] = f"{API}/data-sets/{made.name}"
    return _view(made, now)


@router.get("", responses=problems(422), summary="List data sets")
def list_data_sets(
    context: InContext,
    principal: InPrincipal,
    *,
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(pattern=ID_PATTERN, description="`next_cursor` of the page before.")] = None,
) -> DataSetPage:
    """A page of data sets, newest first."""
    found = context.data_sets.page(principal.tenant, limit + 1, cursor)
    items = [_view(data_set, datetime.now(UTC)) for data_set in found[:limit]]
    return DataSetPage(items=items, next_cursor=found[limit - 1].id if len(found) > limit else None)


@router.get("/{name}", responses=problems(404), summary="Look at a data set")
def get_data_set(data_set: KnownDataSet) -> DataSetView:
    """What its manifest says, and how its last check went."""
    return _view(data_set, datetime.now(UTC))


@router.post("/{name}/check", status_code=HTTPStatus.ACCEPTED, responses=problems(404, 409), summary="Check a data set")
def check_data_set(data_set: KnownDataSet, context: InContext) -> CheckView:
    """Hold every file and example against the manifest; look at the data set to see how far that is."""
    check = context.checker.begin(data_set, datetime.now(UTC))
    if check is None:
        raise ProblemError(HTTPStatus.CONFLICT, f"A check of {data_set.name!r} is running already.")
    return check


def _view(data_set: DataSetRecord, now: datetime) -> DataSetView:
    check = data_set.check
    if check is not None and check.status == "running" and now - check.updated_at > timedelta(seconds=STALE_S):
        check = check.model_copy(update={"status": "interrupted"})
    return DataSetView(
        **dict(data_set.summary),
        name=data_set.name,
        manifest=data_set.manifest,
        created_at=data_set.created_at,
        check=check,
    )
