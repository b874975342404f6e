"""A uvicorn server that ends event streams as soon as it is told to stop, instead of waiting for their clients."""

from __future__ import annotations

import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.api.app import begin_shutdown

GRACE_S = 10
"""Seconds that requests under way have to end."""


class Server(uvicorn.Server):
    """Serves the app. `run()` blocks until SIGINT, SIGTERM, or `stop()` from another thread."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        """Nothing listens before `run` or `serve`."""
        config = uvicorn.Config(
            app, host, port, timeout_graceful_shutdown=GRACE_S, log_config=None, access_log=False, ws="none"
        )
        super().__init__(config)
        self.app = app
        """What is served."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn, once."""
        for listener in sockets or ():
            # Who is accepted inherits it. asyncio would set it, but does not know our listeners for TCP; without it the
            # body of each answer waits for the client to acknowledge the header, which takes it 40 ms.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await super().startup(sockets)

    def stop(self) -> None:
        """End streams, let other requests finish, and stop."""
        begin_shutdown(self.app)
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn at SIGINT and SIGTERM."""
        begin_shutdown(self.app)
        super().handle_exit(sig, frame)
