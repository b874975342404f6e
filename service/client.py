"""A typed client of the REST API.

HushError                     what a caller of this client should expect
├── UnreachableError          nobody answers at this address
├── UnexpectedAnswerError     somebody answers, but not the service
└── ProblemAnswerError        the service refuses, with its Problem
    ├── NotFoundError         404
    ├── ConflictError         409
    └── InvalidRequestError   422: one entry a field in `problem.errors`
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Final, Literal, Self, TypeVar

import httpx
import httpx_sse
from pydantic import BaseModel, TypeAdapter, ValidationError

from service.jobs.states import JobState
from service.schemas import (
    EventPage,
    EventView,
    ExamplePage,
    ExampleSort,
    ExampleView,
    JobPage,
    JobView,
    MetricsView,
    Problem,
)
from trainer.run_schema import EvaluationReport, LabelNoiseRecord, Progress
from trainer.spec import JobSpec

API: Final = "/api/v1"
TIMEOUT_S: Final = 30.0
STREAM_SILENCE_S: Final = 45.0
"""A stream that is silent for longer is dead: the service sends a comment every 15 s."""
PATIENCE_S: Final = 120.0
"""Seconds that `follow` tries to get a lost service back."""
RETRY_S: Final = 1.0

Happening = EventView | Progress | JobView
"""What `follow` yields: events, progress in between, and last the job that has ended."""

_Answer = TypeVar("_Answer", bound=BaseModel)


class HushError(Exception):
    """What a caller of this client should expect."""


class UnreachableError(HushError):
    """Nobody answers at this address."""


class UnexpectedAnswerError(HushError):
    """Somebody answers, but not the service."""


class ProblemAnswerError(HushError):
    """The service refuses, and says why."""

    def __init__(self, problem: Problem) -> None:
        """Its text is a line for each wrong field, or the detail."""
        self.problem = problem
        fields = problem.errors or []
        lines = [f"{f.field}{'' if f.value is None else f' = {f.value}'}: {f.message}" for f in fields]
        super().__init__("\n".join(lines) or problem.detail or problem.title)


class NotFoundError(ProblemAnswerError):
    """There is no such thing."""


class ConflictError(ProblemAnswerError):
    """It cannot be done in the present state."""


class InvalidRequestError(ProblemAnswerError):
    """The request itself is wrong; `problem.errors` says which fields."""


_ERRORS: Final[Mapping[int, type[ProblemAnswerError]]] = {
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.CONFLICT: ConflictError,
    HTTPStatus(422): InvalidRequestError,
}


class HushClient:
    """Talks to one service. A context manager."""

    def __init__(self, url: str) -> None:
        """`url` is the service's address, e.g. `http://127.0.0.1:8900`; nothing is asked of it yet."""
        self.url = url.rstrip("/")
        # A proxy of the environment would stand between us and a service on this machine.
        self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, spec: JobSpec, idempotency_key: str | None = None) -> JobView:
        """Submit a job; safe to repeat with the same key. Without one, a lost answer is asked for again here."""
        body = spec.model_dump(mode="json")
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        try:
            return self._parse(JobView, self._send("POST", f"{API}/jobs", json=body, headers=headers))
        except UnreachableError:
            return self._parse(JobView, self._send("POST", f"{API}/jobs", json=body, headers=headers))

    def job(self, job_id: str) -> JobView:
        """A job."""
        return self._get(JobView, job_id)

    def jobs(self, *, state: JobState | None = None, name: str | None = None, page: int = 100) -> Iterator[JobView]:
        """All jobs, newest first; asks for a page of this size at a time."""
        params = {"state": state, "name": name, "limit": str(page)}
        cursor: str | None = None
        while True:
            found = self._parse(JobPage, self._send("GET", f"{API}/jobs", params=params | {"cursor": cursor}))
            yield from found.items
            cursor = found.next_cursor
            if cursor is None:
                return

    def cancel(self, job_id: str) -> JobView:
        """Ask a job to stop."""
        return self._parse(JobView, self._send("POST", f"{API}/jobs/{job_id}/cancel"))

    def events(self, job_id: str, after: int = 0) -> Iterator[EventView]:
        """What happened to a job so far."""
        while True:
            page = self._get(EventPage, job_id, "/events", after=str(after))
            yield from page.items
            if page.next_after is None:
                return
            after = page.next_after

    def follow(self, job_id: str, after: int = 0) -> Iterator[Happening]:
        """What happens to a job, until it has ended. Goes on where it was cut off when the service comes back."""
        lost_since: float | None = None
        while True:
            try:
                for happening in self._stream(job_id, after):
                    lost_since = None
                    yield happening
                    if isinstance(happening, JobView):
                        return
                    if isinstance(happening, EventView):
                        after = happening.id
            except (httpx.TransportError, UnreachableError) as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > PATIENCE_S:
                    raise self._unreachable(error) from None
            time.sleep(RETRY_S)

    def metrics(self, job_id: str) -> MetricsView:
        """All metrics, each a series by step."""
        return self._get(MetricsView, job_id, "/metrics")

    def label_noise(self, job_id: str, epoch: int | None = None) -> list[LabelNoiseRecord]:
        """Label-noise histograms of all epochs, or of one."""
        params = {} if epoch is None else {"epoch": str(epoch)}
        response = self._send("GET", f"{API}/jobs/{job_id}/label-noise", params=params)
        return _LABEL_NOISE.validate_json(response.content)

    def evaluation(self, job_id: str, epoch: int | None = None) -> EvaluationReport:
        """Accuracy, calibration and confusion after an epoch, by default the newest."""
        return self._get(EvaluationReport, job_id, "/evaluation", epoch=None if epoch is None else str(epoch))

    def examples(
        self,
        job_id: str,
        *,
        sort: ExampleSort = "suspicion",
        order: Literal["asc", "desc"] = "desc",
        epoch: int | None = None,
        given_label: int | None = None,
        page: int = 200,
    ) -> Iterator[ExampleView]:
        """Tracked examples after an epoch, by default the newest; asks for a page of this size at a time."""
        query = {"sort": sort, "order": order, "limit": str(page)}
        query |= {} if epoch is None else {"epoch": str(epoch)}
        query |= {} if given_label is None else {"given_label": str(given_label)}
        cursor: str | None = None
        while True:
            found = self._get(ExamplePage, job_id, "/examples", **query, cursor=cursor)
            yield from found.items
            cursor = found.next_cursor
            if cursor is None:
                return

    def _get(self, model: type[_Answer], job_id: str, path: str = "", **params: str | None) -> _Answer:
        return self._parse(model, self._send("GET", f"{API}/jobs/{job_id}{path}", params=params))

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | None] | None = None,
        json: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        given = {key: value for key, value in (params or {}).items() if value is not None}
        try:
            response = self._http.request(method, path, params=given, json=json, headers=headers)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if not response.is_success:
            raise self._refusal(response)
        return response

    def _stream(self, job_id: str, after: int) -> Iterator[Happening]:
        headers = {"Last-Event-ID": str(after)} if after else {}
        timeout = httpx.Timeout(TIMEOUT_S, read=STREAM_SILENCE_S)
        path = f"{API}/jobs/{job_id}/events"
        with httpx_sse.connect_sse(self._http, "GET", path, headers=headers, timeout=timeout) as source:
            if not source.response.is_success:
                source.response.read()
                raise self._refusal(source.response)
            for message in source.iter_sse():
                match message.event:
                    case "state" | "epoch":
                        yield EventView.model_validate_json(message.data)
                    case "progress":
                        yield Progress.model_validate_json(message.data)
                    case "end":
                        yield JobView.model_validate_json(message.data)

    def _parse(self, model: type[_Answer], response: httpx.Response) -> _Answer:
        try:
            return model.model_validate_json(response.content)
        except ValidationError:
            raise self._unexpected(response) from None

    def _refusal(self, response: httpx.Response) -> HushError:
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            return self._unexpected(response)
        return _ERRORS.get(problem.status, ProblemAnswerError)(problem)

    def _unexpected(self, response: httpx.Response) -> UnexpectedAnswerError:
        return UnexpectedAnswerError(
            f"{self.url} answers, but not as Hush does ({response.request.method} {response.request.url.path}:"
            f" {response.status_code}); is it another program, or another version?"
        )

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(f"nobody answers at {self.url} ({error}); start the service with: hush serve")


_LABEL_NOISE: Final = TypeAdapter(list[LabelNoiseRecord])
