"""The app: parts put together, routes, errors, and what happens at start and stop. Imports no torch and no Ray."""

from __future__ import annotations

import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from random import SystemRandom

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI
from fastapi_offline import FastAPIOffline

from service.access.authenticator import Authenticator
from service.access.oidc import oidc_of
from service.api.auth import read_or_write
from service.api.body_limit import BodyLimit
from service.api.context import Context
from service.api.errors import install, problems
from service.api.event_watch import EventWatch
from service.api.gate import Gate
from service.api.openapi import openapi
from service.api.paging import check_page_size
from service.api.routes import events, health, internal, jobs, logs, results, tokens
from service.api.routes import metrics as metrics_routes
from service.api.routes import studies as study_routes
from service.api.routes import webhooks as webhook_routes
from service.api.views import webhook_body
from service.cluster.attempts import AttemptFolders
from service.cluster.launcher import Launcher
from service.cluster.ray_launcher import RayLauncher
from service.cluster.spares import Spares
from service.cluster.warm_launcher import WarmLauncher
from service.control.decisions import Policy
from service.control.early_stop import EarlyStopper
from service.control.failpoints import arm
from service.control.leadership import Leadership
from service.control.reconciler import World
from service.control.reconciler_thread import Reconciler
from service.jobs.records import TenantLimits
from service.results.logs import Logs
from service.results.reader import Results
from service.schemas import API
from service.settings import Settings
from service.store.database import migrate, open_engine
from service.store.event_log import EventLog
from service.store.figures import read_figures
from service.store.leases import Leases
from service.store.store import Store
from service.store.studies import Studies
from service.store.tokens import Tokens
from service.store.webhooks import Webhooks
from service.telemetry.collector import Observed, ServiceCollector
from service.telemetry.metrics import Metrics
from service.telemetry.requests import RequestTelemetry
from service.telemetry.tracing import Tracing
from service.webhooks.addresses import policy_of
from service.webhooks.post import Poster
from service.webhooks.sender import Outbox, WebhookSender

_DESCRIPTION = """\
Trains image classifiers on noisily labelled data, and shows epoch by epoch how much each example's label is smoothed.

Submit a job with `POST /api/v1/jobs`, follow it at `/api/v1/jobs/{id}/events`, and read its metrics, label-noise
histograms, evaluation and most suspect examples while it runs. Every error is `application/problem+json` (RFC 9457)."""


def create_app(settings: Settings, *, launcher: Launcher | None = None) -> FastAPI:
    """The service as an ASGI app. Nothing is opened before it starts; `launcher` stands in for Ray if given."""
    closing, metrics, tracing = threading.Event(), Metrics(), Tracing(settings.otel_endpoint)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context = await anyio.to_thread.run_sync(_open, settings, launcher, _Made(closing, metrics, tracing))
        app.state.context = context
        tracing.start()
        context.reconciler.start()
        context.sender.start()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(context.watch.run)
                yield
                closing.set()
        finally:
            closing.set()
            await anyio.to_thread.run_sync(_close, context)

    app = FastAPIOffline(  # /docs without a CDN
        title="Hush",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        separate_input_output_schemas=False,
        telemetry=tracing.fastapi_config,
    )
    app.state.closing = closing
    install(app)
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(Gate, rate_limit_per_minute=settings.rate_limit_per_minute)
    app.add_middleware(RequestTelemetry, metrics=metrics, new_id=lambda: secrets.token_hex(16))  # the last comes first
    app.openapi = partial(openapi, app)  # type: ignore[method-assign]  # FastAPI's own way to extend it
    of_every_route = [Depends(read_or_write), Depends(check_page_size)]
    api = APIRouter(prefix=API, dependencies=of_every_route, responses=problems(401, 403, 429))
    for module in (jobs, events, logs, results, study_routes, tokens, webhook_routes):
        api.include_router(module.router)
    app.include_router(api)
    app.include_router(internal.router, prefix=API)
    app.include_router(health.router)
    app.include_router(metrics_routes.router)
    return app


def begin_shutdown(app: FastAPI) -> None:
    """End all event streams, which would else keep a server that waits for its connections from stopping."""
    app.state.closing.set()


@dataclass(frozen=True)
class _Made:
    """What there is before the app starts: its middleware works with it."""

    closing: threading.Event
    metrics: Metrics
    tracing: Tracing


def _open(settings: Settings, launcher: Launcher | None, made: _Made) -> Context:
    arm(settings.failpoint)
    engine = open_engine(settings.database)
    migrate(engine)
    store = Store(engine)
    launcher = launcher or _launcher(settings)
    folders = AttemptFolders(settings.storage_dir, settings.public_url, settings.mlflow_uri)
    limits = TenantLimits(settings.max_running_jobs_per_tenant, settings.max_workers_per_tenant)
    studies = Studies(engine)
    early_stop, tracer = EarlyStopper(studies), made.tracing.tracer
    world = World(store, launcher, folders, _policy(settings), limits, early_stop, tracer=tracer)
    leadership = Leadership(Leases(engine), secrets.token_hex(16), settings.lease_ttl_s)
    reconciler = Reconciler(world, leadership, settings.reconcile_interval_s)
    known, webhooks = Tokens(engine), Webhooks(engine)
    sender = _sender(webhooks, Leases(engine), settings)
    watch = EventWatch(EventLog(engine), made.closing)
    observed = Observed(partial(read_figures, engine), reconciler, lambda: sender.counts, lambda: watch.num_followers)
    made.metrics.add(ServiceCollector(observed))
    return Context(
        settings=settings,
        store=store,
        studies=studies,
        launcher=launcher,
        reconciler=reconciler,
        results=Results(folders),
        logs=Logs(folders),
        tokens=known,
        authenticator=Authenticator(known, oidc_of(settings)),
        watch=watch,
        webhooks=webhooks,
        sender=sender,
        metrics=made.metrics,
        tracing=made.tracing,
        closing=made.closing,
    )


def _sender(webhooks: Webhooks, leases: Leases, settings: Settings) -> WebhookSender:
    poster = Poster(policy_of(settings), settings.webhook_timeout_s)
    outbox = Outbox(webhooks, leases, poster, partial(webhook_body, mlflow_uri=settings.mlflow_uri))
    return WebhookSender(outbox, secrets.token_hex(16), SystemRandom().random)


def _policy(settings: Settings) -> Policy:
    return Policy(
        cancel_grace_s=settings.cancel_grace_s,
        cancel_checkpoint_s=settings.cancel_checkpoint_s,
        lost_after_s=settings.lost_after_s,
        start_timeout_s=settings.start_timeout_s,
        linger_s=settings.linger_s,
        retry_backoff_s=settings.retry_backoff_s,
        retry_backoff_max_s=settings.retry_backoff_max_s,
    )


def _launcher(settings: Settings) -> Launcher:
    ray = RayLauncher(settings.ray_address, settings.python, settings.ray_token)
    if not settings.warm_workers:
        return ray
    warm = WarmLauncher(ray, settings.python, Spares(settings.storage_dir / "spares"))
    warm.keep()
    return warm


def _close(context: Context) -> None:
    context.sender.stop()
    context.reconciler.stop()
    context.launcher.close()
    context.store.close()
    context.tracing.stop()
