"""The client that waits for each answer."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterator
from typing import Literal, Self, TypeVar

import httpx
import httpx_sse

from service.client import routes
from service.client.address import address, find_address
from service.client.calls import TIMEOUT_S, Call, Pages, Stream, cut_off, failure
from service.client.retry import Outcome, Patience, Retry
from service.client.routes import Happening
from service.jobs.states import JobState
from service.schemas import EventView, ExampleSort, ExampleView, JobView, MetricsView
from trainer.run_schema import EvaluationReport, LabelNoiseRecord
from trainer.spec import JobSpec

_Answer = TypeVar("_Answer")
_Item = TypeVar("_Item")


class Client:
    """Talks to one service. A context manager; several threads may share one."""

    def __init__(self, url: str, token: str | None = None, *, retry: Retry | None = None) -> None:
        """`url` is the service's address, e.g. `http://127.0.0.1:8900`; nothing is asked of it yet.

        `retry`: how patient to be with a service that is away for a while; see `Retry`.
        """
        checked = address(url, token)
        self.url = checked.url
        self._retry = retry or Retry()
        # A proxy of the environment would stand between us and a service on this machine.
        self._http = httpx.Client(base_url=self.url, headers=checked.headers, timeout=TIMEOUT_S, trust_env=False)

    @classmethod
    def from_environment(cls, *, retry: Retry | None = None) -> Self:
        """A client of HUSH_URL with HUSH_TOKEN; without HUSH_URL, of the service that serves the home folder."""
        found = find_address(os.environ)
        return cls(found.url, found.token, retry=retry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, spec: JobSpec, idempotency_key: str | None = None) -> JobView:
        """Submit a job. With the key of a job of yours, it is that job again; without one, each call makes one job."""
        return self._ask(routes.submit(spec, idempotency_key))

    def job(self, job_id: str) -> JobView:
        """A job."""
        return self._ask(routes.job(job_id))

    def jobs(
        self,
        *,
        state: JobState | None = None,
        name: str | None = None,
        method: str | None = None,
        page: int = 100,
    ) -> Iterator[JobView]:
        """All jobs that match, newest first; asks for a page of this size at a time."""
        return self._walk(routes.jobs(state, name, method, page))

    def cancel(self, job_id: str) -> JobView:
        """Ask a job to stop."""
        return self._ask(routes.cancel(job_id))

    def events(self, job_id: str, after: int = 0) -> Iterator[EventView]:
        """What happened to a job so far."""
        return self._walk(routes.events(job_id, after))

    def follow(self, job_id: str, after: int = 0) -> Iterator[Happening]:
        """What happens to a job, until it has ended. Goes on where it was cut off when the service comes back."""
        return self._follow(routes.event_stream(job_id, after))

    def metrics(self, job_id: str) -> MetricsView:
        """All metrics, each a series by step."""
        return self._ask(routes.metrics(job_id))

    def label_noise(self, job_id: str, epoch: int | None = None) -> list[LabelNoiseRecord]:
        """Label-noise histograms of all epochs, or of one."""
        return self._ask(routes.label_noise(job_id, epoch))

    def evaluation(self, job_id: str, epoch: int | None = None) -> EvaluationReport:
        """Accuracy, calibration and confusion after an epoch, by default the newest."""
        return self._ask(routes.evaluation(job_id, epoch))

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
        return self._walk(
            routes.examples(job_id, sort=sort, order=order, epoch=epoch, given_label=given_label, page=page)
        )

    def _ask(self, call: Call[_Answer]) -> _Answer:
        patience = Patience.with_request(self._retry)
        while True:
            outcome = self._send(call.request(self._http))
            pause_s = patience.wait_s(outcome, repeatable=call.repeatable)
            if pause_s is None:
                return call.answer(self.url, outcome)
            time.sleep(pause_s)

    def _send(self, request: httpx.Request) -> Outcome:
        try:
            return self._http.send(request)
        except httpx.RequestError as error:
            return error

    def _walk(self, pages: Pages[_Answer, _Item]) -> Iterator[_Item]:
        call: Call[_Answer] | None = pages.first
        while call is not None:
            page = self._ask(call)
            yield from pages.items(page)
            call = pages.after(page)

    def _follow(self, stream: Stream[_Item]) -> Iterator[_Item]:
        patience = Patience.with_request(self._retry)
        while True:
            outcome: Outcome = cut_off()
            try:
                with contextlib.closing(self._messages(stream)) as messages:
                    for message in messages:
                        patience.renew()
                        item = stream.take(self.url, message)
                        if item is not None:
                            yield item
                        if stream.ended:
                            return
            except httpx.RequestError as error:
                outcome = error
            except httpx.HTTPStatusError as error:
                outcome = error.response
            pause_s = patience.wait_s(outcome, repeatable=True)
            if pause_s is None:
                raise failure(self.url, outcome)
            time.sleep(pause_s)

    def _messages(self, stream: Stream[_Item]) -> Generator[httpx_sse.ServerSentEvent]:
        """Of one connection; httpx's errors."""
        with contextlib.closing(self._http.send(stream.request(self._http), stream=True)) as response:
            if not response.is_success:
                response.read()
                response.raise_for_status()
            yield from httpx_sse.EventSource(response).iter_sse()
