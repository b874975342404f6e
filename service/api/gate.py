"""The gate before the API: who bears no good token, or comes too often, comes no further, whatever the route behind it
forgot to ask.

Ahead of the routes, so that nothing of a stranger's request is read but its headers. Attempts have tokens of their own
for their heartbeats (routes/internal.py), and are not counted.
"""

from __future__ import annotations

import logging
import math
import time
from datetime import UTC, datetime
from http import HTTPStatus

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.errors import BadTokenError
from service.access.jwks import IdentityProviderAwayError
from service.access.principal import Principal
from service.access.rate_limit import Rate, RateLimiter, client_of
from service.api.auth import bearer, unauthorised
from service.api.context import Context
from service.api.errors import DATABASE_AWAY, DATABASE_RETRY_S, ProblemError, away, problem_response
from service.schemas import API

INTERNAL = f"{API}/internal/"
IDENTITY_PROVIDER_RETRY_S = 10

logger = logging.getLogger(__name__)


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, rate_limit_per_minute: int) -> None:
        """Guards all of `app` under /api/v1. A limit of 0 is none."""
        self._app = app
        self._per_minute = rate_limit_per_minute
        self._limiter = RateLimiter(Rate(rate_limit_per_minute) if rate_limit_per_minute else None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http" and _is_guarded(scope["path"]):
            try:
                principal = await self._let_in(scope)
            except ProblemError as error:
                await problem_response(Request(scope), error)(scope, receive, send)
                return
            scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)

    async def _let_in(self, scope: Scope) -> Principal:
        """Who asks; each is counted by name, and those who have none by their address."""
        try:
            principal = await _principal(Headers(scope=scope), scope["app"].state.context)
        except ProblemError:
            self._count(client_of(scope["client"][0] if scope["client"] else None))
            raise
        self._count(principal.id)
        return principal

    def _count(self, client: str) -> None:
        wait_s = math.ceil(self._limiter.wait_s(client, time.monotonic()))
        if wait_s:
            detail = f"More than {self._per_minute} requests a minute: the next is taken in {wait_s} s."
            raise ProblemError(HTTPStatus.TOO_MANY_REQUESTS, detail, headers={"Retry-After": str(wait_s)})


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
    except IdentityProviderAwayError as error:
        logger.warning("%s", error)
        raise away("identity provider", IDENTITY_PROVIDER_RETRY_S) from None
    except DATABASE_AWAY:
        raise away("database", DATABASE_RETRY_S) from None  # the app's handlers see only what happens behind the gate
