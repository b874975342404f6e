"""Studies: create, list, look, cancel together, compare."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Response

from service.api.admission import admit_study
from service.api.auth import InPrincipal
from service.api.context import Context, InContext
from service.api.errors import ProblemError, problems, spec_problem
from service.api.routes.jobs import ID_PATTERN, IdempotencyKey, Limit, json_only
from service.api.study_views import study_summary, study_view
from service.api.views import study_path
from service.jobs.ids import is_id
from service.jobs.records import IdempotencyConflictError
from service.schemas import CancelRequest
from service.studies.comparison import ComparedJob, compare
from service.studies.comparison_csv import comparison_csv
from service.studies.expansion import expand
from service.studies.records import StudyRecord
from service.studies.states import StudyState
from service.studies.study_spec import StudySpec
from service.study_schemas import StudyComparison, StudyPage, StudyView
from trainer.spec_errors import SpecError

router = APIRouter(prefix="/studies", tags=["studies"])

CSV = "text/csv"


def _known_study(
    study_id: Annotated[str, Path(description="Id of the study.")], context: InContext, principal: InPrincipal
) -> StudyRecord:
    """The study of the path; what cannot be an id never reaches the database, and another tenant's is not there."""
    study = context.studies.get(study_id) if is_id(study_id) else None
    if study is None or study.tenant != principal.tenant:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"There is no study {study_id[:40]!r}.")
    return study


KnownStudy = Annotated[StudyRecord, Depends(_known_study)]


@router.post(
    "",
    status_code=HTTPStatus.ACCEPTED,
    dependencies=[Depends(json_only)],
    responses={
        202: {"headers": {"Location": {"description": "Where the study is.", "schema": {"type": "string"}}}},
        **problems(400, 409, 413, 415, 422),
    },
    summary="Create a study",
)
def create_study(
    spec: StudySpec,
    context: InContext,
    principal: InPrincipal,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> StudyView:
    """Check all jobs of a study and store them, or none; they start as soon as the cluster has room. After the 202 none
    is ever lost."""
    study = _create(spec, context, principal.tenant, idempotency_key)
    response.headers["Location"] = study_path(study.id)
    return study_view(study, context.studies.jobs(study.id))


def _create(spec: StudySpec, context: Context, tenant: str, key: str | None) -> StudyRecord:
    try:
        if key is not None and (known := context.studies.find_created(tenant, spec, key)):
            return known  # even if its manifest is gone by now
        jobs = [planned.spec for planned in expand(spec)]
        admit_study(spec, jobs, context.settings.roots, context.settings.allowed_urls)
        study, is_new = context.studies.create(tenant, spec, jobs, datetime.now(UTC), key)
    except IdempotencyConflictError as error:
        detail = f"The Idempotency-Key was used before for something else, with the id {error}."
        raise ProblemError(HTTPStatus.CONFLICT, detail) from None
    except SpecError as error:
        raise spec_problem(error) from None
    if is_new:
        context.reconciler.wake()
    return study


@router.get("", responses=problems(422), summary="List studies")
def list_studies(
    context: InContext,
    principal: InPrincipal,
    *,
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(pattern=ID_PATTERN, description="`next_cursor` of the page before.")] = None,
) -> StudyPage:
    """A page of studies, newest first."""
    found = context.studies.page(principal.tenant, limit + 1, cursor)
    counts = context.studies.counts([study.id for study in found[:limit]])
    items = [study_summary(study, counts[study.id]) for study in found[:limit]]
    return StudyPage(items=items, next_cursor=items[-1].id if len(found) > limit else None)


@router.get("/{study_id}", responses=problems(404), summary="Look at a study")
def get_study(study: KnownStudy, context: InContext) -> StudyView:
    """A study, and where each of its jobs is."""
    return study_view(study, context.studies.jobs(study.id))


@router.post(
    "/{study_id}/cancel",
    status_code=HTTPStatus.ACCEPTED,
    responses=problems(400, 404, 409, 413, 422),
    summary="Cancel a study's jobs",
)
def cancel_study(study: KnownStudy, context: InContext, request: CancelRequest | None = None) -> StudyView:
    """Cancel all jobs that wait and ask all that run to stop, in one step: after a last checkpoint or, with
    `{"mode": "now"}`, at once.

    Jobs that have ended stay as they are. To repeat it is fine, and hurries a graceful stop if it says `now`.
    """
    mode = (request or CancelRequest()).mode
    cancelled = context.studies.cancel(study.id, datetime.now(UTC), mode)
    view = study_view(cancelled, context.studies.jobs(study.id))
    if view.state in {StudyState.SUCCEEDED, StudyState.FAILED}:
        raise ProblemError(HTTPStatus.CONFLICT, f"The study has ended: it is {view.state}.")
    context.reconciler.wake()
    return view


@router.get(
    "/{study_id}/comparison",
    response_model=StudyComparison,
    responses={
        200: {
            "description": "The comparison; with `format=csv` a table with a row for each point.",
            "content": {CSV: {"schema": {"type": "string"}}},
        },
        **problems(404, 422),
    },
    summary="Compare a study's points",
)
def get_comparison(
    study: KnownStudy,
    context: InContext,
    output: Annotated[
        Literal["json", "csv"], Query(alias="format", description="`csv`: a table, a row for each point.")
    ] = "json",
) -> StudyComparison | Response:
    """For each point median and spread over its seeds; for each method the point that does best on val, with its test
    figures. Of jobs that have not ended, what they have so far."""
    jobs = context.studies.whole_jobs(study.id)
    comparison = compare(study, [ComparedJob(job, context.results.headlines(job.id)) for job in jobs])
    return comparison if output == "json" else Response(comparison_csv(comparison), media_type=f"{CSV}; charset=utf-8")
