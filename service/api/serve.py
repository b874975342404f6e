"""`hush api`: the app in one process, until SIGINT or SIGTERM."""

from __future__ import annotations

import logging
import socket
import sys
from typing import Final

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from service.access.exposure import check_exposure
from service.api.app import create_app
from service.api.server import Server
from service.settings import Settings
from service.store.database import migrate, open_engine
from service.telemetry.json_logs import log_as_json

STARTUP_FAILED: Final = 3


def serve_api(host: str, port: int) -> None:
    """Serve as the environment says; ValueError if it says what cannot be, OSError if the port is taken."""
    settings = _settings()
    _check_database(settings)
    check_exposure(settings, host)
    log_as_json(logging.StreamHandler(sys.stdout))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        server = Server(create_app(settings), host, port)
        server.run(sockets=[listener])
    if not server.started:
        raise SystemExit(STARTUP_FAILED)


def _check_database(settings: Settings) -> None:
    """A line here rather than a traceback when the app starts."""
    try:
        engine = open_engine(settings.database)
        migrate(engine)
        engine.dispose()
    except SQLAlchemyError as error:
        raise ValueError(f"HUSH_DATABASE_URL: the database cannot be used: {str(error).splitlines()[0]}") from None


def _settings() -> Settings:
    """Read once, here at the edge; one line a wrong variable, without its value, which may be secret."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"HUSH_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_input=False)]
        raise ValueError("\n".join(lines)) from None
