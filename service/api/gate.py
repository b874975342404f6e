"""The gate before the API: who bears no good token comes no further, whatever the route behind it forgot to ask.

Ahead of the routes, so that nothing of a stranger's request is read but its headers. Attempts have tokens of their own
for their heartbeats (routes/internal.py).
"""

from __future__ import annotations

from datetime import UTC, datetime

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.authenticator import BadTokenError
from service.access.principal import Principal
from service.api.auth import unauthorised
from service.api.context import Context
from service.api.errors import ProblemError, problem_response
from service.schemas import API

INTERNAL = f"{API}/internal/"


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        """Guards all of `app` under /api/v1."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http" and _is_guarded(scope["path"]):
            context: Context = scope["app"].state.context
            try:
                principal = await _principal(Headers(scope=scope), context)
            except ProblemError as error:
                await problem_response(Request(scope), error)(scope, receive, send)
                return
            scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)


def _is_guarded(path: str) -> bool:
    return path.startswith(f"{API}/") and not path.startswith(INTERNAL)


async def _principal(headers: Headers, context: Context) -> Principal:
    token = bearer(headers.get("authorization", ""))
    if token is None:
        raise unauthorised("This needs a bearer token; `hush token create` makes one.")
    now = datetime.now(UTC)
    try:
        return await anyio.to_thread.run_sync(context.authenticator.principal, token, now)
    except BadTokenError as error:
        raise unauthorised(str(error), "invalid_token") from None


def bearer(authorization: str) -> str | None:
    """The token of an Authorization header; None if it bears none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
