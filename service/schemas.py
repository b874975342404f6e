"""The bodies of the REST API, read by the routes that send them and the client that receives them."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.access.roles import Role
from service.access.tokens import NAME_PATTERN
from service.jobs.records import CancelMode
from service.jobs.states import TERMINAL_STATES, JobState, Reason
from trainer.run_schema import EpochSummary, Progress
from trainer.spec import JobSpec

API: Final = "/api/v1"
"""What the paths of all routes begin with."""


class View(BaseModel):
    """Base of what the API answers."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Links(View):
    """Where to read on."""

    self: str
    events: str
    attempts: str
    logs: str
    mlflow: str | None = None
    """The run in the MLflow UI; null until training has begun, or without MLflow."""


class JobView(View):
    """A job as the API shows it."""

    id: str
    name: str
    state: JobState
    reason: Reason
    """Why it is in this state."""
    message: str | None = None
    """More about the reason, for people: of a failure, the last lines of what went wrong."""
    method: str
    priority: int
    attempt: int
    """The newest attempt, from 1."""
    num_failures: int
    """Attempts that were lost; the job has failed for good after `fault_tolerance.max_failures` + 1."""
    not_before: datetime | None = None
    """While it recovers: the next attempt starts no earlier."""
    deadline_at: datetime | None = None
    """When it is stopped, and FAILED, if it has not ended by then."""
    cancel_mode: CancelMode | None = None
    """How it was asked to stop; null if it was not."""
    retry_of: str | None = None
    """Id of the job that had ended and whose checkpoints this one goes on from."""
    study_id: str | None = None
    """Id of the study it belongs to."""
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    """First heartbeat of the first attempt."""
    ended_at: datetime | None = None
    progress: Progress | None = None
    spec: JobSpec
    links: Links


class CancelRequest(View):
    """How a job is to stop."""

    model_config = ConfigDict(extra="forbid")

    mode: CancelMode = "graceful"
    """`graceful`: after a last checkpoint; `now`: at once, without."""


class AttemptView(View):
    """One run of a job."""

    number: int
    """From 1."""
    created_at: datetime
    submitted_at: datetime | None = None
    """When the cluster had accepted it."""
    heartbeat_at: datetime | None = None
    """When it was last heard of."""
    ended_at: datetime | None = None
    reason: Reason | None = None
    """Why it ended."""
    message: str | None = None


class AttemptList(View):
    """All attempts of a job, the first one first."""

    items: list[AttemptView]


class JobPage(View):
    """A page of jobs, newest first."""

    items: list[JobView]
    next_cursor: str | None = None
    """Pass as `cursor` for the next page; null on the last."""


class EventView(View):
    """Something that happened to a job. Ids rise by time, over all jobs."""

    id: int
    job_id: str
    attempt: int
    time: datetime
    kind: Literal["state", "epoch"]
    state: JobState
    """The job's state after the event."""
    reason: Reason | None = None
    """Of a state event."""
    message: str | None = None
    epoch: EpochSummary | None = None
    """Of an epoch event: the figures of the epoch that finished."""


class EventPage(View):
    """Events in the order they happened."""

    items: list[EventView]
    next_after: int | None = None
    """Pass as `after` for the next page; null when there is none yet."""


class LogLinks(View):
    """Where to read a log."""

    self: str
    follow: str
    """As it grows, from its beginning."""


class LogView(View):
    """What one rank, or the driver, wrote in one attempt."""

    attempt: int
    name: str
    """`driver`, or a rank: `rank_0000`."""
    size_bytes: int
    links: LogLinks


class LogPiece(View):
    """The next piece of a log that is followed."""

    attempt: int
    name: str
    offset: int
    """Bytes of the log before this piece."""
    text: str


class TokenRequest(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=NAME_PATTERN, examples=["ci"])
    """For people: who or what will bear it."""
    role: Role = Role.VIEWER
    """`viewer` reads, `submitter` submits and cancels jobs too, `admin` manages tokens and webhooks too."""
    expires_in_s: int | None = Field(default=90 * 24 * 3600, ge=60, le=10 * 366 * 24 * 3600)
    """Seconds for which it is good; null: until it is revoked."""


class TokenView(View):
    """A token, without itself."""

    id: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewTokenView(TokenView):
    """A token that was just made."""

    token: str
    """To be sent as `Authorization: Bearer <token>`. Nothing shows it again."""


class TokenPage(View):
    """A page of tokens, newest first."""

    items: list[TokenView]
    next_cursor: str | None = None


class WhoamiView(View):
    """Who asks."""

    tenant: str
    role: Role
    name: str


class Health(View):
    """Liveness or readiness, with each part's state."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str] = {}


class Problem(View):
    """RFC 9457 problem details: what every error answers, as application/problem+json."""

    type: str
    """URI of the kind of problem, `about:blank` where the status says it all."""
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldProblem] | None = None
    """Of a 422: one entry for each field that is wrong."""


class FieldProblem(View):
    """A field of the request that is wrong."""

    field: str
    """Where, e.g. `method.lr`."""
    message: str
    """What is allowed."""
    value: str | None = None
    """What was sent, shortened; absent where nothing was."""


class NewWebhook(View):
    """A webhook to register."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"url": "https://example.org/hush"}]})

    url: str = Field(min_length=1, max_length=2000)
    """Where to send: an https address on the public internet, unless the service's settings allow more."""
    states: list[JobState] = Field(default=sorted(TERMINAL_STATES), min_length=1, max_length=len(JobState))
    """Changes to these states are told; unset: those that end a job."""


class WebhookView(View):
    """A webhook as the API shows it."""

    id: str
    url: str
    states: list[JobState]
    created_at: datetime


class CreatedWebhook(WebhookView):
    """A webhook that was just registered, with its secret."""

    secret: str
    """Verifies the `webhook-signature` of what is sent, by any library of Standard Webhooks. Shown this once."""


class WebhookPage(View):
    """All webhooks of the tenant, newest first."""

    items: list[WebhookView]


class DeliveryView(View):
    """What a webhook was told of one event, and how that went."""

    id: int
    """Its `webhook-id` is `msg_<id>`, at each try."""
    event_id: int
    job_id: str
    job_state: JobState
    """What the job had become."""
    status: Literal["pending", "delivered", "given_up"]
    num_tries: int
    next_try_at: datetime | None = None
    """Null unless it is pending."""
    delivered_at: datetime | None = None
    last_error: str | None = None
    """Of the last try; null if it succeeded."""


class DeliveryPage(View):
    """Deliveries of a webhook, newest first."""

    items: list[DeliveryView]
    next_cursor: int | None = None
    """Pass as `cursor` for the next page; null on the last."""


class WebhookData(View):
    """What happened, and the job as it was when this was sent."""

    event: EventView
    job: JobView


class WebhookMessage(View):
    """What a webhook is sent. Tries of one delivery bear one `webhook-id`; it may arrive more than once."""

    type: Literal["job.state"] = "job.state"
    timestamp: datetime
    """When it happened."""
    data: WebhookData
