"""Whether somebody who follows something may still do so: a stream outlasts the check of its token by hours."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

import anyio.to_thread
from fastapi import Request

from service.access.errors import BadTokenError
from service.access.jwks import IdentityProviderAwayError
from service.api.auth import bearer
from service.api.context import Context
from service.api.errors import DATABASE_AWAY

logger = logging.getLogger(__name__)

RECHECK_S = 30.0


class Visit:
    """One stream, whose token the gate has just found good."""

    def __init__(self, request: Request, context: Context) -> None:
        """Asks nothing yet."""
        self._token = bearer(request.headers.get("authorization", "")) or ""
        self._context = context
        self._checked_at = time.monotonic()

    async def may_go_on(self) -> bool:
        """False once the service closes, or the token has expired or was revoked, which is asked every RECHECK_S."""
        if self._context.closing.is_set():
            return False
        if time.monotonic() - self._checked_at < RECHECK_S:
            return True
        self._checked_at = time.monotonic()
        return await anyio.to_thread.run_sync(self._is_good, limiter=self._context.watch.readers)

    def _is_good(self) -> bool:
        try:
            self._context.authenticator.principal(self._token, datetime.now(UTC))
        except BadTokenError as error:
            logger.info("a stream ends, as its token is good no more: %s", error)
            return False
        except (IdentityProviderAwayError, *DATABASE_AWAY):
            logger.info("nobody can say whether a stream's token is still good; it is asked again later")
        return True
