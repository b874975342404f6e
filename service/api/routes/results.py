"""Results of a job: metrics, label noise, evaluation, model."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from service.api.context import Context, InContext, KnownJob
from service.api.errors import ProblemError, problems
from service.api.file_part import WantedRange, file_part
from service.api.views import model_view
from service.result_schemas import MetricsView, ModelView
from trainer.run_schema import EVALUATION_DIR, LABEL_NOISE_DIR, EvaluationReport, LabelNoiseRecord

router = APIRouter(prefix="/jobs/{job_id}", tags=["results"])

Epoch = Annotated[int | None, Query(ge=1, le=1_000_000, description="Epoch, from 1; unset: the newest.")]
EachEpoch = Annotated[int | None, Query(ge=1, le=1_000_000, description="Epoch, from 1; unset: all.")]
WEIGHTS = "application/octet-stream"


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
        raise not_there_yet("label noise", epoch)
    return records


@router.get("/evaluation", responses=problems(404, 422), summary="Evaluation")
def get_evaluation(job: KnownJob, context: InContext, epoch: Epoch = None) -> EvaluationReport:
    """Accuracy, NLL, Brier score, calibration and confusion after an epoch."""
    epoch = epoch or newest_epoch(job.id, context, EVALUATION_DIR, "json")
    report = context.results.evaluation(job.id, epoch) if epoch else None
    if report is None:
        raise not_there_yet("evaluation", epoch)
    return report


@router.get("/model", responses=problems(404), summary="Where the model is")
def get_model(job: KnownJob, context: InContext) -> ModelView:
    """Where the trained weights are: on the storage, in MLflow, and here. A job that was stopped has some, too."""
    found = context.results.model(job.id)
    if found is None:
        raise not_there_yet("model", None)
    return model_view(job, found)


@router.get(
    "/model/weights",
    response_class=StreamingResponse,
    responses={
        200: {"description": "The file.", "content": {WEIGHTS: {"schema": {"type": "string", "format": "binary"}}}},
        206: {
            "description": "The bytes that `Range` asks for.",
            "content": {WEIGHTS: {"schema": {"type": "string", "format": "binary"}}},
        },
        **problems(404, 416, 422),
    },
    summary="Fetch the model",
)
def get_weights(job: KnownJob, context: InContext, *, wanted: WantedRange = None) -> StreamingResponse:
    """The trained weights, a state dict that `torch.load(…, weights_only=True)` reads."""
    path = context.results.weights(job.id)
    if path is None:
        raise not_there_yet("model", None)
    headers = {"Content-Disposition": f'attachment; filename="{job.id}.pt"'}
    try:
        return file_part(path, wanted, WEIGHTS, headers)
    except FileNotFoundError:  # the run was taken up again just now
        raise not_there_yet("model", None) from None


def newest_epoch(job_id: str, context: Context, folder: str, suffix: str) -> int | None:
    """The newest epoch whose file is there, if there is one."""
    return max(context.results.epochs(job_id, folder, suffix), default=None)


def not_there_yet(what: str, epoch: int | None) -> ProblemError:
    """A 404 that may become a 200."""
    where = "" if epoch is None else f" of epoch {epoch}"
    return ProblemError(HTTPStatus.NOT_FOUND, f"The {what}{where} is not there yet.")
