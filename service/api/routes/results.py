"""Results of a job: metrics, label noise, evaluation, examples."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from service.api.context import Context, InContext, KnownJob
from service.api.errors import ProblemError, problems
from service.results.reader import ExampleQuery
from service.schemas import ExamplePage, ExampleSort, MetricsView
from trainer.run_schema import EVALUATION_DIR, EXAMPLES_DIR, LABEL_NOISE_DIR, EvaluationReport, LabelNoiseRecord

router = APIRouter(prefix="/jobs/{job_id}", tags=["results"])

Epoch = Annotated[int | None, Query(ge=1, le=1_000_000, description="Epoch, from 1; unset: the newest.")]
EachEpoch = Annotated[int | None, Query(ge=1, le=1_000_000, description="Epoch, from 1; unset: all.")]
Cursor = Annotated[
    str | None, Query(pattern=r"^[0-9]{1,7}-[0-9]{1,9}$", description="`next_cursor` of the page before.")
]


@router.get("/metrics", responses=problems(404), summary="Metrics")
def get_metrics(job: KnownJob, context: InContext) -> MetricsView:
    """All metrics, each a series by step; empty before the first is there."""
    return context.results.metrics(job.id)


@router.get("/label-noise", responses=problems(404, 422), summary="Label-noise histograms")
def get_label_noise(job: KnownJob, context: InContext, epoch: EachEpoch = None) -> list[LabelNoiseRecord]:
    """Histograms of ‖ε‖₂ over the tracked examples, overall and for each class: of all recorded epochs, or of one."""
    epochs = context.results.epochs(job.id, LABEL_NOISE_DIR, "json") if epoch is None else [epoch]
    records = [record for e in epochs if (record := context.results.label_noise(job.id, e))]
    if epoch is not None and not records:
        raise _not_there_yet("label noise", epoch)
    return records


@router.get("/evaluation", responses=problems(404, 422), summary="Evaluation")
def get_evaluation(job: KnownJob, context: InContext, epoch: Epoch = None) -> EvaluationReport:
    """Accuracy, NLL, Brier score, calibration and confusion after an epoch."""
    epoch = epoch or _newest(job.id, context, EVALUATION_DIR, "json")
    report = context.results.evaluation(job.id, epoch) if epoch else None
    if report is None:
        raise _not_there_yet("evaluation", epoch)
    return report


@router.get("/examples", responses=problems(404, 422), summary="Examples, sorted by suspicion or ambiguity")
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
) -> ExamplePage:
    """Tracked examples after an epoch. The pages of one walk show one epoch, also while newer ones come in."""
    offset = 0
    if cursor is not None:
        epoch, offset = (int(part) for part in cursor.split("-"))
    epoch = epoch or _newest(job.id, context, EXAMPLES_DIR, "parquet")
    query = ExampleQuery(sort, order == "asc", given_label)
    found = context.results.examples(job.id, epoch, query, offset, limit) if epoch else None
    if epoch is None or found is None:
        raise _not_there_yet("table of examples", epoch)
    end = offset + len(found.items)
    more = found.items and end < found.total
    return ExamplePage(
        epoch=epoch, total=found.total, items=found.items, next_cursor=f"{epoch}-{end}" if more else None
    )


def _newest(job_id: str, context: Context, folder: str, suffix: str) -> int | None:
    return max(context.results.epochs(job_id, folder, suffix), default=None)


def _not_there_yet(what: str, epoch: int | None) -> ProblemError:
    where = "" if epoch is None else f" of epoch {epoch}"
    return ProblemError(HTTPStatus.NOT_FOUND, f"The {what}{where} is not there yet.")
