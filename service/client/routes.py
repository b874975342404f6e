"""Every route of the API as a call: what is sent, and what comes back."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Final, Literal, TypeVar
from urllib.parse import quote

import httpx_sse
from pydantic import TypeAdapter

from service.access.roles import Role
from service.client.calls import Call, Pages, Params, Stream
from service.data_set_schemas import CheckView, DataSetPage, DataSetView
from service.jobs.records import CancelMode
from service.jobs.states import JobState
from service.result_schemas import ExampleHistory, ExamplePage, ExampleSort, ExampleView, MetricsView, ModelView
from service.schemas import (
    API,
    AttemptList,
    AttemptView,
    CancelRequest,
    CreatedWebhook,
    DeliveryPage,
    DeliveryView,
    EventPage,
    EventView,
    JobPage,
    JobView,
    LogPiece,
    LogView,
    NewTokenView,
    TokenPage,
    TokenView,
    WebhookPage,
    WebhookView,
    WhoamiView,
)
from service.studies.study_spec import StudySpec
from service.study_schemas import StudyComparison, StudyPage, StudySummary, StudyView
from trainer.run_schema import EvaluationReport, LabelNoiseRecord, Progress
from trainer.spec import JobSpec

Happening = EventView | Progress | JobView
"""What `follow` yields: events, progress in between, and last the job that has ended."""

FIRST_RANK: Final = "rank_0000"
"""Name of the log that is read where none is named."""

_Answer = TypeVar("_Answer")

_JOBS: Final = f"{API}/jobs"
_STUDIES: Final = f"{API}/studies"
_DATA_SETS: Final = f"{API}/data-sets"
_TOKENS: Final = f"{API}/tokens"
_WEBHOOKS: Final = f"{API}/webhooks"
_LOGS: Final = TypeAdapter(list[LogView])
_LABEL_NOISE: Final = TypeAdapter(list[LabelNoiseRecord])


def submit(spec: JobSpec, key: str | None) -> Call[JobView]:
    """Submit a job."""
    return Call("POST", _JOBS, JobView.model_validate_json, body=spec.model_dump_json().encode(), key=_key(key))


def job(job_id: str) -> Call[JobView]:
    """A job."""
    return Call("GET", _job(job_id), JobView.model_validate_json)


def jobs(
    *, state: JobState | None, name: str | None, method: str | None, study: str | None, page: int
) -> Pages[JobPage, JobView]:
    """Jobs, newest first."""
    params: Params = {"state": state, "name": name, "method": method, "study": study, "limit": page}
    first = Call("GET", _JOBS, JobPage.model_validate_json, params=params)
    return Pages(first, lambda found: found.items, lambda found: _more("cursor", found.next_cursor))


def cancel(job_id: str, mode: CancelMode) -> Call[JobView]:
    """Ask a job to stop; to ask twice is to ask once."""
    body = CancelRequest(mode=mode).model_dump_json().encode()
    return Call("POST", _job(job_id, "cancel"), JobView.model_validate_json, body=body)


def retry(job_id: str, key: str | None) -> Call[JobView]:
    """Submit a job that has ended again."""
    return Call("POST", _job(job_id, "retry"), JobView.model_validate_json, key=_key(key))


def attempts(job_id: str) -> Call[list[AttemptView]]:
    """All attempts of a job."""
    return Call("GET", _job(job_id, "attempts"), lambda body: AttemptList.model_validate_json(body).items)


def events(job_id: str, after: int) -> Pages[EventPage, EventView]:
    """What happened to a job so far."""
    first = Call("GET", _job(job_id, "events"), EventPage.model_validate_json, params={"after": after})
    return Pages(first, lambda found: found.items, lambda found: _more("after", found.next_after))


def event_stream(job_id: str, after: int) -> Stream[Happening]:
    """What happens to a job, until it has ended."""
    return Stream(_job(job_id, "events"), _happening, last_id=str(after) if after else None)


def logs(job_id: str) -> Call[list[LogView]]:
    """Logs of a job, of all attempts."""
    return Call("GET", _job(job_id, "logs"), _LOGS.validate_json)


def log_text(job_id: str, attempt: int, name: str, tail_lines: int | None) -> Call[str]:
    """A log, or its last lines."""
    path = _job(job_id, "logs", str(attempt), quote(name, safe=""))
    return Call("GET", path, lambda body: body.decode(errors="replace"), params={"tail_lines": tail_lines})


def log_stream(job_id: str, attempt: int | None, name: str) -> Stream[LogPiece]:
    """A log as it grows."""
    return Stream(_job(job_id, "logs"), _log_piece, params={"follow": "true", "attempt": attempt, "name": name})


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


def export_examples(
    job_id: str,
    kind: Literal["csv", "parquet"],
    *,
    sort: ExampleSort,
    order: Literal["asc", "desc"],
    epoch: int | None,
    given_label: int | None,
) -> Call[bytes]:
    """All tracked examples after an epoch, as a file."""
    params: Params = {"format": kind, "sort": sort, "order": order, "epoch": epoch, "given_label": given_label}
    return Call("GET", _job(job_id, "examples"), bytes, params=params)


def example(job_id: str, example_id: str) -> Call[ExampleHistory]:
    """One example over the epochs."""
    return Call("GET", _job(job_id, "examples", quote(example_id, safe="")), ExampleHistory.model_validate_json)


def picture(job_id: str, example_id: str) -> Call[bytes]:
    """The picture of an example."""
    return Call("GET", _job(job_id, "examples", quote(example_id, safe=""), "image"), bytes)


def model(job_id: str) -> Call[ModelView]:
    """Where a job's model is."""
    return Call("GET", _job(job_id, "model"), ModelView.model_validate_json)


def weights(job_id: str) -> Call[bytes]:
    """The model's file."""
    return Call("GET", _job(job_id, "model", "weights"), bytes)


def create_study(study: StudySpec, key: str | None) -> Call[StudyView]:
    """Create a study with all its jobs."""
    return Call("POST", _STUDIES, StudyView.model_validate_json, body=study.model_dump_json().encode(), key=_key(key))


def study(study_id: str) -> Call[StudyView]:
    """A study with its jobs."""
    return Call("GET", _study(study_id), StudyView.model_validate_json)


def studies(page: int) -> Pages[StudyPage, StudySummary]:
    """Studies, newest first."""
    first = Call("GET", _STUDIES, StudyPage.model_validate_json, params={"limit": page})
    return Pages(first, lambda found: found.items, lambda found: _more("cursor", found.next_cursor))


def cancel_study(study_id: str, mode: CancelMode) -> Call[StudyView]:
    """Cancel all jobs of a study; to ask twice is to ask once."""
    body = CancelRequest(mode=mode).model_dump_json().encode()
    return Call("POST", _study(study_id, "cancel"), StudyView.model_validate_json, body=body)


def comparison(study_id: str) -> Call[StudyComparison]:
    """The points of a study, compared."""
    return Call("GET", _study(study_id, "comparison"), StudyComparison.model_validate_json)


def comparison_csv(study_id: str) -> Call[str]:
    """The same as a table."""
    return Call("GET", _study(study_id, "comparison"), bytes.decode, params={"format": "csv"})


def register_data_set(name: str, manifest: str) -> Call[DataSetView]:
    """Register a manifest. A name is given once: a lost answer is not asked for again."""
    body = json.dumps({"name": name, "manifest": manifest}).encode()
    return Call("POST", _DATA_SETS, DataSetView.model_validate_json, body=body, repeatable=False)


def data_sets(page: int) -> Pages[DataSetPage, DataSetView]:
    """Data sets of the tenant, newest first."""
    first = Call("GET", _DATA_SETS, DataSetPage.model_validate_json, params={"limit": page})
    return Pages(first, lambda found: found.items, lambda found: _more("cursor", found.next_cursor))


def data_set(name: str) -> Call[DataSetView]:
    """A data set, with its last check."""
    return Call("GET", _data_set(name), DataSetView.model_validate_json)


def check_data_set(name: str) -> Call[CheckView]:
    """Begin a check of all files. One runs at a time: a lost answer is not asked for again."""
    return Call("POST", _data_set(name, "check"), CheckView.model_validate_json, repeatable=False)


def create_token(name: str, role: Role, expires_in_s: int | None) -> Call[NewTokenView]:
    """Make a token. To make two is not to make one: a lost answer is not asked for again."""
    body = json.dumps({"name": name, "role": role, "expires_in_s": expires_in_s}).encode()
    return Call("POST", _TOKENS, NewTokenView.model_validate_json, body=body, repeatable=False)


def tokens(page: int) -> Pages[TokenPage, TokenView]:
    """Tokens of the tenant, newest first."""
    first = Call("GET", _TOKENS, TokenPage.model_validate_json, params={"limit": page})
    return Pages(first, lambda found: found.items, lambda found: _more("cursor", found.next_cursor))


def revoke_token(token_id: str) -> Call[TokenView]:
    """Make a token worthless."""
    return Call("DELETE", f"{_TOKENS}/{quote(token_id, safe='')}", TokenView.model_validate_json)


def create_webhook(url: str, states: Sequence[JobState] | None) -> Call[CreatedWebhook]:
    """Register a webhook. To register two is not to register one: a lost answer is not asked for again."""
    body = json.dumps({"url": url, **({} if states is None else {"states": list(states)})}).encode()
    return Call("POST", _WEBHOOKS, CreatedWebhook.model_validate_json, body=body, repeatable=False)


def webhooks() -> Call[list[WebhookView]]:
    """Webhooks of the tenant."""
    return Call("GET", _WEBHOOKS, lambda body: WebhookPage.model_validate_json(body).items)


def webhook(webhook_id: str) -> Call[WebhookView]:
    """A webhook, without its secret."""
    return Call("GET", _webhook(webhook_id), WebhookView.model_validate_json)


def delete_webhook(webhook_id: str) -> Call[None]:
    """Delete a webhook."""
    return Call("DELETE", _webhook(webhook_id), lambda _: None)


def deliveries(webhook_id: str, page: int) -> Pages[DeliveryPage, DeliveryView]:
    """What a webhook was told, newest first."""
    path = _webhook(webhook_id, "deliveries")
    first = Call("GET", path, DeliveryPage.model_validate_json, params={"limit": page})
    return Pages(first, lambda found: found.items, lambda found: _more("cursor", found.next_cursor))


def whoami() -> Call[WhoamiView]:
    """Whom the service takes us for."""
    return Call("GET", f"{API}/whoami", WhoamiView.model_validate_json)


def _key(given: str | None) -> str:
    """Names one request, so that the service knows it when it is sent again."""
    return given or uuid.uuid4().hex


def _job(job_id: str, *below: str) -> str:
    return "/".join((_JOBS, quote(job_id, safe=""), *below))


def _study(study_id: str, *below: str) -> str:
    return "/".join((_STUDIES, quote(study_id, safe=""), *below))


def _data_set(name: str, *below: str) -> str:
    return "/".join((_DATA_SETS, quote(name, safe=""), *below))


def _webhook(webhook_id: str, *below: str) -> str:
    return "/".join((_WEBHOOKS, quote(webhook_id, safe=""), *below))


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


def _log_piece(message: httpx_sse.ServerSentEvent) -> LogPiece | None:
    return LogPiece.model_validate_json(message.data) if message.event == "log" else None
