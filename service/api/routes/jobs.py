"""Jobs: submit, list, look, cancel, retry."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from service.api.admission import admit
from service.api.auth import InPrincipal
from service.api.context import Context, InContext, KnownJob
from service.api.errors import ProblemError, problems
from service.api.views import attempt_view, job_path, job_view
from service.jobs.records import IdempotencyConflictError, JobFilter, JobRecord, PlaceTakenError, Submission
from service.jobs.states import TERMINAL_STATES, JobState
from service.schemas import AttemptList, CancelRequest, JobPage, JobView
from service.studies.states import EARLY_STOPPED
from trainer.spec import JobSpec

router = APIRouter(prefix="/jobs", tags=["jobs"])

ID_PATTERN = r"^[0-9a-hjkmnp-tv-z]{26}$"

IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="Any name of yours for this request: sent again with it, the request makes no second job.",
    ),
]
ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"headers": {"Location": {"description": "Where the job is.", "schema": {"type": "string"}}}}
}
"""Documents the answer of routes that make a job."""
Limit = Annotated[int, Query(ge=1, le=500, description="At most this many on a page.")]


def json_only(request: Request) -> None:
    """Refuse bodies that do not say they are JSON: a web page of someone else can send those without asking."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body must be sent as application/json.")


@router.post(
    "",
    status_code=HTTPStatus.ACCEPTED,
    dependencies=[Depends(json_only)],
    responses={
        **ACCEPTED,
        **problems(400, 409, 413, 415, 422),
    },
    summary="Submit a job",
)
def submit_job(
    spec: JobSpec,
    context: InContext,
    principal: InPrincipal,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Check a job and store it; it starts as soon as the cluster has room. After the 202 it is never lost."""
    job = _submit(Submission(principal.tenant, spec), context, idempotency_key)
    response.headers["Location"] = job_path(job.id)
    return job_view(job, context.settings.mlflow_uri)


def _submit(submission: Submission, context: Context, key: str | None) -> JobRecord:
    try:
        if key is not None and (known := context.store.find_submitted(key, submission)):
            return known  # even if its manifest is gone by now
        admit(submission.spec, context.settings.roots, context.settings.allowed_urls)
        job, is_new = context.store.submit(submission, datetime.now(UTC), key)
    except IdempotencyConflictError as error:
        detail = f"The Idempotency-Key was used before for another spec, that of job {error}."
        raise ProblemError(HTTPStatus.CONFLICT, detail) from None
    if is_new:
        context.reconciler.wake()
    return job


@router.get("", responses=problems(422), summary="List jobs")
def list_jobs(
    context: InContext,
    principal: InPrincipal,
    *,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    name: Annotated[str | None, Query(max_length=200, description="Only jobs of exactly this name.")] = None,
    method: Annotated[str | None, Query(max_length=32, description="Only jobs of this method, e.g. `ivon`.")] = None,
    study: Annotated[str | None, Query(pattern=ID_PATTERN, description="Only jobs of the study of this id.")] = None,
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(pattern=ID_PATTERN, description="`next_cursor` of the page before.")] = None,
) -> JobPage:
    """A page of jobs, newest first."""
    if "\0" in (name or "") + (method or ""):
        return JobPage(items=[])  # no job has such a name, and PostgreSQL refuses to be asked
    wanted = JobFilter(tenant=principal.tenant, state=state, name=name, method=method, study_id=study)
    found = context.store.page(wanted, limit + 1, cursor)
    items = [job_view(job, context.settings.mlflow_uri) for job in found[:limit]]
    return JobPage(items=items, next_cursor=items[-1].id if len(found) > limit else None)


@router.get("/{job_id}", responses=problems(404), summary="Look at a job")
def get_job(job: KnownJob, context: InContext) -> JobView:
    """A job: where it is in its life, and its progress."""
    return job_view(job, context.settings.mlflow_uri)


@router.get("/{job_id}/attempts", responses=problems(404), summary="Attempts of a job")
def list_attempts(job: KnownJob, context: InContext) -> AttemptList:
    """All attempts, the first one first: when each began and ended, and why."""
    return AttemptList(items=[attempt_view(attempt) for attempt in context.store.attempts(job.id)])


@router.post(
    "/{job_id}/cancel",
    status_code=HTTPStatus.ACCEPTED,
    responses=problems(400, 404, 409, 413, 422),
    summary="Cancel a job",
)
def cancel_job(job: KnownJob, context: InContext, request: CancelRequest | None = None) -> JobView:
    """Cancel a job that waits; ask one that runs to stop: after a last checkpoint or, with `{"mode": "now"}`, at once.

    What it has by then is kept. To repeat it is fine, and hurries a graceful stop if it says `now`.
    """
    mode = (request or CancelRequest()).mode
    cancelled = context.store.request_cancel(job.id, datetime.now(UTC), mode)
    assert cancelled is not None, "jobs are never deleted"
    if cancelled.state in TERMINAL_STATES and cancelled.state is not JobState.CANCELLED:
        raise ProblemError(HTTPStatus.CONFLICT, f"The job has ended: it is {cancelled.state}.")
    context.reconciler.wake()
    return job_view(cancelled, context.settings.mlflow_uri)


@router.post(
    "/{job_id}/retry",
    status_code=HTTPStatus.ACCEPTED,
    responses={**ACCEPTED, **problems(404, 409, 422)},
    summary="Retry a job that has failed",
)
def retry_job(job: KnownJob, context: InContext, response: Response, idempotency_key: IdempotencyKey = None) -> JobView:
    """Submit the spec of a job that is FAILED or CANCELLED again, as a new job that goes on from its last checkpoint.

    The old job stays as it is. The new one has all its attempts and its whole deadline before it, and takes the old
    one's place in its study; not that of one that early stopping has ended, which would be stopped again.
    """
    if job.state not in {JobState.FAILED, JobState.CANCELLED}:
        detail = f"The job is {job.state}; a job can be retried that is FAILED or CANCELLED."
        raise ProblemError(HTTPStatus.CONFLICT, detail)
    of_study = (None, None) if (job.state, job.reason) == EARLY_STOPPED else (job.study_id, job.study_index)
    try:
        retried = _submit(Submission(job.tenant, job.spec, *of_study, retry_of=job.id), context, idempotency_key)
    except PlaceTakenError as error:
        detail = f"The job's place in its study is that of job {error}, which retried it: retry that one."
        raise ProblemError(HTTPStatus.CONFLICT, detail) from None
    response.headers["Location"] = job_path(retried.id)
    return job_view(retried, context.settings.mlflow_uri)
