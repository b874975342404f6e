"""What is said of every request: its id in the answer and in all logs, a line in the log, its part in the metrics."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Final

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry.log_fields import bind, bound
from service.telemetry.metrics import Metrics

logger = logging.getLogger("service.access_log")

REQUEST_ID: Final = "X-Request-ID"
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")

NO_ROUTE: Final = "(none)"
"""Of requests that no route was asked about: paths that are not there, and whom the gate turned away."""

FREQUENT: Final = ("/healthz", "/readyz", "/metrics", "/api/v1/internal/")
"""Paths that are asked every few seconds, of which only failures are worth a line."""
CLIENT_GONE: Final = 499
SERVER_ERROR: Final = 500


class RequestTelemetry:
    """ASGI middleware, the outermost one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, new_id: Callable[[], str]) -> None:
        """`new_id` makes the id of a request that comes without a sane one."""
        self._app = app
        self._metrics = metrics
        self._new_id = new_id
        self._templates: dict[int, str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SANE_ID.fullmatch(given) else self._new_id()
        # Never taken back: a request has a task of its own, and what the server logs at its end bears the id, too.
        bind({"request_id": request_id})
        scope.setdefault("state", {})["request_id"] = request_id
        status, began = CLIENT_GONE, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            status = SERVER_ERROR
            raise
        finally:
            self._tell(scope, status, time.perf_counter() - began)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._template(scope)
        self._metrics.saw_request(scope["method"], route, status, seconds)
        level = logging.INFO if status >= SERVER_ERROR or not scope["path"].startswith(FREQUENT) else logging.DEBUG
        fields = {"method": scope["method"], "path": scope["path"], "route": route, "status": status}
        with bound({**fields, "duration_ms": round(seconds * 1000, 1)}):
            logger.log(level, "%s %s %d", scope["method"], scope["path"], status)

    def _template(self, scope: Scope) -> str:
        """The path of the request's route, e.g. `/api/v1/jobs/{job_id}`: there are few, whatever clients ask for."""
        if self._templates is None:
            app = scope["app"]
            assert isinstance(app, FastAPI)
            routes = iter_route_contexts(app.routes)
            self._templates = {id(context.original_route): context.path or NO_ROUTE for context in routes}
        return self._templates.get(id(scope.get("route")), NO_ROUTE)
