"""What routes work with, made at start of the app and handed to them by FastAPI's dependencies."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Path, Request

from service.access.authenticator import Authenticator
from service.api.auth import InPrincipal
from service.api.errors import ProblemError
from service.api.event_watch import EventWatch
from service.api.readiness import Readiness
from service.cluster.launcher import Launcher
from service.control.reconciler_thread import Reconciler
from service.data_sets.checker import DataSetChecker
from service.jobs.ids import is_id
from service.jobs.records import JobRecord
from service.results.export import Exports
from service.results.logs import Logs
from service.results.pictures import Pictures
from service.results.reader import Results
from service.settings import Settings
from service.store.data_sets import DataSets
from service.store.store import Store
from service.store.studies import Studies
from service.store.tokens import Tokens
from service.store.webhooks import Webhooks
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing
from service.webhooks.sender import WebhookSender


@dataclass(frozen=True)
class Context:
    """The parts of a running service."""

    settings: Settings
    store: Store
    studies: Studies
    launcher: Launcher
    reconciler: Reconciler
    readiness: Readiness
    results: Results
    logs: Logs
    pictures: Pictures
    exports: Exports
    tokens: Tokens
    authenticator: Authenticator
    watch: EventWatch
    data_sets: DataSets
    checker: DataSetChecker
    webhooks: Webhooks
    sender: WebhookSender
    metrics: Metrics
    tracing: Tracing
    closing: threading.Event
    """Set when the server is about to stop: streams that would never end then end."""


def _context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


InContext = Annotated[Context, Depends(_context)]


def _known_job(
    job_id: Annotated[str, Path(description="Id of the job.")], context: InContext, principal: InPrincipal
) -> JobRecord:
    """The job of the path; what cannot be an id never reaches the database, and another tenant's is not there."""
    job = context.store.get(job_id) if is_id(job_id) else None
    if job is None or job.tenant != principal.tenant:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"There is no job {job_id[:40]!r}.")
    return job


KnownJob = Annotated[JobRecord, Depends(_known_job)]
