"""Records of the store -> bodies of the REST API."""

from __future__ import annotations

from urllib.parse import quote

from service.jobs.records import AttemptRecord, EventRecord, JobRecord
from service.result_schemas import ExampleLinks, ModelLinks, ModelView
from service.results.logs import LogFile, Piece
from service.results.reader import FoundModel
from service.schemas import (
    API,
    AttemptView,
    EventView,
    JobView,
    Links,
    LogLinks,
    LogPiece,
    LogView,
    WebhookData,
    WebhookMessage,
)
from trainer.run_schema import MODEL_FILE


def job_path(job_id: str) -> str:
    """Path of a job in the API."""
    return f"{API}/jobs/{job_id}"


def study_path(study_id: str) -> str:
    """Path of a study in the API."""
    return f"{API}/studies/{study_id}"


def job_view(job: JobRecord, mlflow_uri: str | None) -> JobView:
    """A job as the API shows it."""
    return JobView(
        id=job.id,
        name=job.spec.name,
        state=job.state,
        reason=job.reason,
        message=job.message,
        method=job.spec.method.kind,
        priority=job.spec.scheduling.priority,
        attempt=job.attempt,
        num_failures=job.num_failures,
        not_before=job.not_before,
        deadline_at=job.deadline_at,
        cancel_mode=job.cancel_mode,
        retry_of=job.retry_of,
        study_id=job.study_id,
        created_at=job.created_at,
        updated_at=job.updated_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        progress=job.progress,
        spec=job.spec,
        links=_links(job, mlflow_uri),
    )


def attempt_view(attempt: AttemptRecord) -> AttemptView:
    """An attempt as the API shows it."""
    return AttemptView(
        number=attempt.number,
        created_at=attempt.created_at,
        submitted_at=attempt.submitted_at,
        heartbeat_at=attempt.heartbeat_at,
        ended_at=attempt.ended_at,
        reason=None if attempt.ended_at is None else attempt.reason,
        message=None if attempt.ended_at is None else attempt.message,
    )


def event_view(event: EventRecord) -> EventView:
    """An event as the API shows it."""
    return EventView(
        id=event.id,
        job_id=event.job_id,
        attempt=event.attempt,
        time=event.time,
        kind=event.kind,
        state=event.state,
        reason=event.reason,
        message=event.message,
        epoch=event.epoch,
    )


def webhook_body(event: EventRecord, job: JobRecord, mlflow_uri: str | None) -> bytes:
    """What a webhook is sent of an event."""
    data = WebhookData(event=event_view(event), job=job_view(job, mlflow_uri))
    return WebhookMessage(timestamp=event.time, data=data).model_dump_json().encode()


def _links(job: JobRecord, mlflow_uri: str | None) -> Links:
    path = job_path(job.id)
    links = {"self": path, "events": f"{path}/events", "attempts": f"{path}/attempts", "logs": f"{path}/logs"}
    return Links.model_validate({**links, "mlflow": _mlflow_link(job, mlflow_uri)})


def example_links(job_id: str, example_id: str) -> ExampleLinks:
    """Where an example is to be seen; its name may hold anything."""
    path = f"{job_path(job_id)}/examples/{quote(example_id, safe='')}"
    return ExampleLinks.model_validate({"self": path, "image": f"{path}/image"})


def model_view(job: JobRecord, found: FoundModel) -> ModelView:
    """A model as the API shows it."""
    return ModelView(
        attempt=found.attempt,
        arch=job.spec.model.arch,
        classes=list(found.classes),
        epoch=found.epoch,
        path=str(found.path),
        size_bytes=found.size_bytes,
        sha256=found.sha256,
        mlflow_uri=None if job.mlflow_run_id is None else f"runs:/{job.mlflow_run_id}/{MODEL_FILE}",
        checkpoint=None if found.checkpoint is None else str(found.checkpoint),
        links=ModelLinks(weights=f"{job_path(job.id)}/model/weights"),
    )


def log_view(job_id: str, file: LogFile) -> LogView:
    """A log as the API lists it."""
    path = f"{job_path(job_id)}/logs"
    links = {
        "self": f"{path}/{file.attempt}/{file.name}",
        "follow": f"{path}?follow=true&attempt={file.attempt}&name={file.name}",
    }
    return LogView(
        attempt=file.attempt, name=file.name, size_bytes=file.size_bytes, links=LogLinks.model_validate(links)
    )


def log_piece_view(name: str, piece: Piece) -> LogPiece:
    """A piece of a log as it is streamed."""
    return LogPiece(attempt=piece.start.attempt, name=name, offset=piece.start.offset, text=piece.text)


def _mlflow_link(job: JobRecord, mlflow_uri: str | None) -> str | None:
    if mlflow_uri is None or job.mlflow_run_id is None or job.mlflow_experiment_id is None:
        return None
    return f"{mlflow_uri}/#/experiments/{job.mlflow_experiment_id}/runs/{job.mlflow_run_id}"
