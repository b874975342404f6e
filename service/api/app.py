"""The app: routes, errors, middleware, and what happens at start and stop. Imports no torch and no Ray."""

from __future__ import annotations

import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI
from fastapi_offline import FastAPIOffline

from service.api.assembly import Early, assemble, begin, take_apart
from service.api.auth import read_or_write
from service.api.body_limit import BodyLimit
from service.api.errors import install, problems
from service.api.gate import Gate
from service.api.openapi import openapi
from service.api.paging import check_page_size
from service.api.routes import (
    data_sets,
    events,
    examples,
    health,
    internal,
    jobs,
    logs,
    metrics,
    results,
    studies,
    tokens,
    webhooks,
)
from service.cluster.launcher import Launcher
from service.schemas import API
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.requests import RequestTelemetry
from service.telemetry.tracing import Tracing

_DESCRIPTION = """\
Trains image classifiers on noisily labelled data, and shows epoch by epoch how much each example's label is smoothed.

Submit a job with `POST /api/v1/jobs`, follow it at `/api/v1/jobs/{id}/events`, and read its metrics, label-noise
histograms, evaluation and most suspect examples while it runs. Every error is `application/problem+json` (RFC 9457)."""


def create_app(settings: Settings, *, launcher: Launcher | None = None) -> FastAPI:
    """The service as an ASGI app. Nothing is opened before it starts; `launcher` stands in for Ray if given."""
    early = Early(threading.Event(), Metrics(), Tracing(settings.otel_endpoint))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context = await anyio.to_thread.run_sync(assemble, settings, launcher, early)
        app.state.context = context
        begin(context)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(context.watch.run)
                yield
                early.closing.set()
        finally:
            early.closing.set()
            await anyio.to_thread.run_sync(take_apart, context)

    app = FastAPIOffline(  # /docs without a CDN
        title="Hush",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        separate_input_output_schemas=False,
        telemetry=early.tracing.fastapi_config,
    )
    app.state.closing = early.closing
    install(app)
    _add_middleware(app, settings, early.metrics)
    _add_routes(app)
    app.openapi = partial(openapi, app)  # type: ignore[method-assign]  # FastAPI's own way to extend it
    return app


def _add_middleware(app: FastAPI, settings: Settings, requests: Metrics) -> None:
    """The last comes first."""
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(Gate, rate_limit_per_minute=settings.rate_limit_per_minute)
    app.add_middleware(RequestTelemetry, metrics=requests, new_id=lambda: secrets.token_hex(16))


def _add_routes(app: FastAPI) -> None:
    of_every_route = [Depends(read_or_write), Depends(check_page_size)]
    api = APIRouter(prefix=API, dependencies=of_every_route, responses=problems(401, 403, 429))
    for module in (jobs, events, logs, results, examples, studies, data_sets, tokens, webhooks):
        api.include_router(module.router)
    app.include_router(api)
    app.include_router(internal.router, prefix=API)
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.webhooks.include_router(webhooks.sent)


def begin_shutdown(app: FastAPI) -> None:
    """End all event streams, which would else keep a server that waits for its connections from stopping."""
    app.state.closing.set()
