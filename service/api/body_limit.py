"""Refuse bodies that are too large while they come in, before they fill the memory."""

from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware; the 413 it raises is answered as a problem, like every other error."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        """`max_body_bytes`: the largest body that is let through."""
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        size_bytes = 0

        async def limited() -> Message:
            nonlocal size_bytes
            message = await receive()
            size_bytes += len(message.get("body", b""))
            if size_bytes > self._max_body_bytes:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return message

        await self._app(scope, limited if scope["type"] == "http" else receive, send)
