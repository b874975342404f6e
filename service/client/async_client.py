"""The client for asyncio: the methods of Client, awaited."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Literal, Self, TypeVar

import anyio
import httpx
import httpx_sse

from service.access.roles import Role
from service.client import routes
from service.client.address import address, find_address
from service.client.calls import TIMEOUT_S, Call, Pages, Stream, cut_off, failure
from service.client.retry import Outcome, Patience, Retry
from service.client.routes import FIRST_RANK, Happening
from service.data_set_schemas import CheckView, DataSetView
from service.jobs.records import CancelMode
from service.jobs.states import JobState
from service.result_schemas import ExampleHistory, ExampleSort, ExampleView, MetricsView, ModelView
from service.schemas import (
    AttemptView,
    CreatedWebhook,
    DeliveryView,
    EventView,
    JobView,
    LogPiece,
    LogView,
    NewTokenView,
    TokenView,
    WebhookView,
    WhoamiView,
)
from service.studies.study_spec import StudySpec
from service.study_schemas import StudyComparison, StudySummary, StudyView
from trainer.run_schema import EvaluationReport, LabelNoiseRecord
from trainer.spec import JobSpec

_Answer = TypeVar("_Answer")
_Item = TypeVar("_Item")


class AsyncClient:
    """Talks to one service. An async context manager; the tasks of one event loop may share one."""

    def __init__(self, url: str, token: str | None = None, *, retry: Retry | None = None) -> None:
        """`url` is the service's address, e.g. `http://127.0.0.1:8900`; nothing is asked of it yet.

        `retry`: how patient to be with a service that is away for a while; see `Retry`.
        """
        checked = address(url, token)
        self.url = checked.url
        self._retry = retry or Retry()
        # A proxy of the environment would stand between us and a service on this machine; its CAs are believed.
        direct = httpx.AsyncHTTPTransport()
        self._http = httpx.AsyncClient(base_url=self.url, headers=checked.headers, timeout=TIMEOUT_S, transport=direct)

    @classmethod
    def from_environment(cls, *, retry: Retry | None = None) -> Self:
        """A client of HUSH_URL with HUSH_TOKEN; without HUSH_URL, of the service that serves the home folder."""
        found = find_address(os.environ)
        return cls(found.url, found.token, retry=retry)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(self, spec: JobSpec, idempotency_key: str | None = None) -> JobView:
        """Submit a job. With the key of a job of yours, it is that job again; without one, each call makes one job."""
        return await self._ask(routes.submit(spec, idempotency_key))

    async def job(self, job_id: str) -> JobView:
        """A job."""
        return await self._ask(routes.job(job_id))

    def jobs(
        self,
        *,
        state: JobState | None = None,
        name: str | None = None,
        method: str | None = None,
        study: str | None = None,
        page: int = 100,
    ) -> AsyncIterator[JobView]:
        """All jobs that match (`study`: by its id), newest first; asks for a page of this size at a time."""
        return self._walk(routes.jobs(state=state, name=name, method=method, study=study, page=page))

    async def cancel(self, job_id: str, mode: CancelMode = "graceful") -> JobView:
        """Ask a job to stop: after a last checkpoint, or with `now` at once and without."""
        return await self._ask(routes.cancel(job_id, mode))

    async def retry(self, job_id: str, idempotency_key: str | None = None) -> JobView:
        """Submit a job that is FAILED or CANCELLED again: the new job goes on from its last checkpoint."""
        return await self._ask(routes.retry(job_id, idempotency_key))

    async def attempts(self, job_id: str) -> list[AttemptView]:
        """All attempts of a job, the first one first: when each began and ended, and why."""
        return await self._ask(routes.attempts(job_id))

    def events(self, job_id: str, after: int = 0) -> AsyncIterator[EventView]:
        """What happened to a job so far."""
        return self._walk(routes.events(job_id, after))

    def follow(self, job_id: str, after: int = 0) -> AsyncIterator[Happening]:
        """What happens to a job, until it has ended. Goes on where it was cut off when the service comes back."""
        return self._follow(routes.event_stream(job_id, after))

    async def logs(self, job_id: str) -> list[LogView]:
        """Logs of a job: each rank's and the driver's, of all attempts."""
        return await self._ask(routes.logs(job_id))

    async def log_text(
        self, job_id: str, attempt: int, name: str = FIRST_RANK, *, tail_lines: int | None = None
    ) -> str:
        """What a rank (`rank_0000`, …) or the `driver` wrote in an attempt so far, or the last lines of it."""
        return await self._ask(routes.log_text(job_id, attempt, name, tail_lines))

    def follow_log(self, job_id: str, name: str = FIRST_RANK, *, attempt: int | None = None) -> AsyncIterator[LogPiece]:
        """A log as it grows, from the beginning of an attempt (by default the newest) until the job has ended.

        Goes on with the next attempt's; survives a restart of the service without losing or repeating a byte.
        """
        return self._follow(routes.log_stream(job_id, attempt, name))

    async def metrics(self, job_id: str) -> MetricsView:
        """All metrics, each a series by step."""
        return await self._ask(routes.metrics(job_id))

    async def label_noise(self, job_id: str, epoch: int | None = None) -> list[LabelNoiseRecord]:
        """Label-noise histograms of all epochs, or of one."""
        return await self._ask(routes.label_noise(job_id, epoch))

    async def evaluation(self, job_id: str, epoch: int | None = None) -> EvaluationReport:
        """Accuracy, calibration and confusion after an epoch, by default the newest."""
        return await self._ask(routes.evaluation(job_id, epoch))

    def examples(
        self,
        job_id: str,
        *,
        sort: ExampleSort = "suspicion",
        order: Literal["asc", "desc"] = "desc",
        epoch: int | None = None,
        given_label: int | None = None,
        page: int = 200,
    ) -> AsyncIterator[ExampleView]:
        """Tracked examples after an epoch, by default the newest; asks for a page of this size at a time."""
        return self._walk(
            routes.examples(job_id, sort=sort, order=order, epoch=epoch, given_label=given_label, page=page)
        )

    async def export_examples(
        self,
        job_id: str,
        kind: Literal["csv", "parquet"],
        *,
        sort: ExampleSort = "suspicion",
        order: Literal["asc", "desc"] = "desc",
        epoch: int | None = None,
        given_label: int | None = None,
    ) -> bytes:
        """All tracked examples after an epoch, by default the newest, as the content of a file."""
        call = routes.export_examples(job_id, kind, sort=sort, order=order, epoch=epoch, given_label=given_label)
        return await self._ask(call)

    async def example(self, job_id: str, example_id: str) -> ExampleHistory:
        """A tracked example after each epoch that was recorded."""
        return await self._ask(routes.example(job_id, example_id))

    async def picture(self, job_id: str, example_id: str) -> bytes:
        """The picture of a training example, as it is stored."""
        return await self._ask(routes.picture(job_id, example_id))

    async def model(self, job_id: str) -> ModelView:
        """Where a job's model is: on the storage, in MLflow, and how far it was trained."""
        return await self._ask(routes.model(job_id))

    async def weights(self, job_id: str) -> bytes:
        """The model's file, a state dict: `torch.load(io.BytesIO(…), weights_only=True)`."""
        return await self._ask(routes.weights(job_id))

    async def create_study(self, study: StudySpec, idempotency_key: str | None = None) -> StudyView:
        """Create a study with all its jobs. With the key of a study of yours, it is that study again."""
        return await self._ask(routes.create_study(study, idempotency_key))

    async def study(self, study_id: str) -> StudyView:
        """A study with its jobs."""
        return await self._ask(routes.study(study_id))

    def studies(self, *, page: int = 100) -> AsyncIterator[StudySummary]:
        """All studies, newest first; asks for a page of this size at a time."""
        return self._walk(routes.studies(page))

    async def cancel_study(self, study_id: str, mode: CancelMode = "graceful") -> StudyView:
        """Ask all jobs of a study to stop: after a last checkpoint each, or with `now` at once and without."""
        return await self._ask(routes.cancel_study(study_id, mode))

    async def comparison(self, study_id: str) -> StudyComparison:
        """The points of a study, compared: spread over their seeds, and the best one for each method."""
        return await self._ask(routes.comparison(study_id))

    async def comparison_csv(self, study_id: str) -> str:
        """The same as CSV: a row for each point."""
        return await self._ask(routes.comparison_csv(study_id))

    async def register_data_set(self, name: str, manifest: str) -> DataSetView:
        """Keep what a manifest says under a name. Its files are looked at by a check."""
        return await self._ask(routes.register_data_set(name, manifest))

    def data_sets(self, *, page: int = 100) -> AsyncIterator[DataSetView]:
        """All data sets of our tenant, newest first; asks for a page of this size at a time."""
        return self._walk(routes.data_sets(page))

    async def data_set(self, name: str) -> DataSetView:
        """What a data set's manifest says, and how its last check went."""
        return await self._ask(routes.data_set(name))

    async def check_data_set(self, name: str) -> CheckView:
        """Begin to hold every file and example against the manifest; `data_set` tells how far that is."""
        return await self._ask(routes.check_data_set(name))

    async def create_token(self, name: str, role: Role, *, expires_in_s: int | None) -> NewTokenView:
        """Make a token of our tenant, as an admin of it; `expires_in_s=None`: good until it is revoked.

        The answer holds the token, and nothing shows it again: if it is lost on the way, revoke that token by its id.
        """
        return await self._ask(routes.create_token(name, role, expires_in_s))

    def tokens(self, *, page: int = 100) -> AsyncIterator[TokenView]:
        """All tokens of our tenant, newest first, with those that are good no longer."""
        return self._walk(routes.tokens(page))

    async def revoke_token(self, token_id: str) -> TokenView:
        """Make a token worthless, at once and for ever."""
        return await self._ask(routes.revoke_token(token_id))

    async def whoami(self) -> WhoamiView:
        """Whom the service takes us for."""
        return await self._ask(routes.whoami())

    async def create_webhook(self, url: str, states: Sequence[JobState] | None = None) -> CreatedWebhook:
        """Have an address told when a job of our tenant comes into one of these states, by default when it has ended.

        The answer holds the secret that verifies what is sent; nothing shows it again.
        """
        return await self._ask(routes.create_webhook(url, states))

    async def webhooks(self) -> list[WebhookView]:
        """All webhooks of our tenant, newest first."""
        return await self._ask(routes.webhooks())

    async def webhook(self, webhook_id: str) -> WebhookView:
        """A webhook, without its secret."""
        return await self._ask(routes.webhook(webhook_id))

    async def delete_webhook(self, webhook_id: str) -> None:
        """Tell a webhook nothing more, not even what it has not heard yet."""
        return await self._ask(routes.delete_webhook(webhook_id))

    def deliveries(self, webhook_id: str, *, page: int = 100) -> AsyncIterator[DeliveryView]:
        """What a webhook was told, newest first, and how that went; asks for a page of this size at a time."""
        return self._walk(routes.deliveries(webhook_id, page))

    async def _ask(self, call: Call[_Answer]) -> _Answer:
        patience = Patience.with_request(self._retry)
        while True:
            outcome = await self._send(call.request(self._http))
            pause_s = patience.wait_s(outcome, repeatable=call.repeatable)
            if pause_s is None:
                return call.answer(self.url, outcome)
            await anyio.sleep(pause_s)

    async def _send(self, request: httpx.Request) -> Outcome:
        try:
            return await self._http.send(request)
        except httpx.RequestError as error:
            return error

    async def _walk(self, pages: Pages[_Answer, _Item]) -> AsyncIterator[_Item]:
        call: Call[_Answer] | None = pages.first
        while call is not None:
            page = await self._ask(call)
            for item in pages.items(page):
                yield item
            call = pages.after(page)

    async def _follow(self, stream: Stream[_Item]) -> AsyncIterator[_Item]:
        patience = Patience.with_request(self._retry)
        while True:
            outcome: Outcome = cut_off()
            try:
                async with contextlib.aclosing(self._messages(stream)) as messages:
                    async for message in messages:
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
            await anyio.sleep(pause_s)

    async def _messages(self, stream: Stream[_Item]) -> AsyncGenerator[httpx_sse.ServerSentEvent]:
        """Of one connection; httpx's errors."""
        response = await self._http.send(stream.request(self._http), stream=True)
        async with contextlib.aclosing(response):
            if not response.is_success:
                await response.aread()
                response.raise_for_status()
            async for message in httpx_sse.EventSource(response).aiter_sse():
                yield message
