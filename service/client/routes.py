"""Every route of the API as a call: what is sent, and what comes back."""

from __future__ import annotations

import uuid
from typing import Final, Literal, TypeVar
from urllib.parse import quote

import httpx_sse
from pydantic import TypeAdapter

from service.client.calls import Call, Pages, Params, Stream
from service.jobs.states import JobState
from service.schemas import (
    API,
    EventPage,
    EventView,
    ExamplePage,
    ExampleSort,
    ExampleView,
    JobPage,
    JobView,
    MetricsView,
)
from trainer.run_schema import EvaluationReport, LabelNoiseRecord, Progress
from trainer.spec import JobSpec

Happening = EventView | Progress | JobView
"""What `follow` yields: events, progress in between, and last the job that has ended."""

_Answer = TypeVar("_Answer")

_JOBS: Final = f"{API}/jobs"
_LABEL_NOISE: Final = TypeAdapter(list[LabelNoiseRecord])


def submit(spec: JobSpec, key: str | None) -> Call[JobView]:
    """Submit a job."""
    return Call("POST", _JOBS, JobView.model_validate_json, body=spec.model_dump_json().encode(), key=key or _new_key())


def job(job_id: str) -> Call[JobView]:
    """A job."""
    return Call("GET", _job(job_id), JobView.model_validate_json)


def jobs(state: JobState | None, name: str | None, method: str | None, page: int) -> Pages[JobPage, JobView]:
    """Jobs, newest first."""
    params: Params = {"state": state, "name": name, "method": method, "limit": page}
    first = Call("GET", _JOBS, JobPage.model_validate_json, params=params)
    return Pages(first, lambda found: found.items, lambda found: _more("cursor", found.next_cursor))


def cancel(job_id: str) -> Call[JobView]:
    """Ask a job to stop; to ask twice is to ask once."""
    return Call("POST", _job(job_id, "cancel"), JobView.model_validate_json)


def events(job_id: str, after: int) -> Pages[EventPage, EventView]:
    """What happened to a job so far."""
    first = Call("GET", _job(job_id, "events"), EventPage.model_validate_json, params={"after": after})
    return Pages(first, lambda found: found.items, lambda found: _more("after", found.next_after))


def event_stream(job_id: str, after: int) -> Stream[Happening]:
    """What happens to a job, until it has ended."""
    return Stream(_job(job_id, "events"), _happening, last_id=str(after) if after else None)


def metrics(job_id: str) -> Call[MetricsView]:
    """All metrics of a job."""
    return Call("GET", _job(job_id, "metrics"), MetricsView.model_validate_json)


def label_noise(job_id: str, epoch: int | None) -> Call[list[LabelNoiseRecord]]:
    """Label-noise histograms of all epochs, or of one."""
    return Call("GET", _job(job_id, "label-noise"), _LABEL_NOISE.validate_json, params={"epoch": epoch})


def evaluation(job_id: str, epoch: int | None) -> Call[EvaluationReport]:
    """Evaluation after an epoch."""
    return Call("GET", _job(job_id, "evaluation"), EvaluationReport.model_validate_json, params={"epoch": epoch})


def examples(
    job_id: str,
    *,
    sort: ExampleSort,
    order: Literal["asc", "desc"],
    epoch: int | None,
    given_label: int | None,
    page: int,
) -> Pages[ExamplePage, ExampleView]:
    """Tracked examples after an epoch."""
    params: Params = {"sort": sort, "order": order, "epoch": epoch, "given_label": given_label, "limit": page}
    first = Call("GET", _job(job_id, "examples"), ExamplePage.model_validate_json, params=params)
    return Pages(first, lambda found: found.items, lambda found: _more("cursor", found.next_cursor))


def _new_key() -> str:
    """Names one request, so that the service knows it when it is sent again."""
    return uuid.uuid4().hex


def _job(job_id: str, *below: str) -> str:
    return "/".join((_JOBS, quote(job_id, safe=""), *below))


def _more(name: str, cursor: str | int | None) -> Params | None:
    return None if cursor is None else {name: cursor}


def _happening(message: httpx_sse.ServerSentEvent) -> Happening | None:
    match message.event:
        case "state" | "epoch":
            return EventView.model_validate_json(message.data)
        case "progress":
            return Progress.model_validate_json(message.data)
        case "end":
            return JobView.model_validate_json(message.data)
    return None
