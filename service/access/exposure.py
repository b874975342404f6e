"""What must be so before the API listens where others than this machine reach it."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import make_url

from service.access.hosts import is_loopback
from service.access.weak_secrets import weak_secrets
from service.settings import Settings
from service.store.database import migrate, open_engine
from service.store.tokens import Tokens


def check_exposure(settings: Settings, host: str) -> None:
    """Raise ValueError if `host` is reached by others while everybody knows a secret, or nobody has a token."""
    if is_loopback(host):
        return
    weak = weak_secrets(settings)
    if not weak and not _anybody_may_enter(settings):
        database = make_url(settings.database).render_as_string(hide_password=True)
        weak = [f"nobody has a token of {database}; make the first by: hush token create NAME --role admin"]
    if weak:
        remedy = "mend that, or listen on 127.0.0.1"
        raise ValueError("\n".join(f"--host {host} is reached from other machines: {line}" for line in [*weak, remedy]))


def _anybody_may_enter(settings: Settings) -> bool:
    engine = open_engine(settings.database)
    try:
        migrate(engine)
        return Tokens(engine).any_good(datetime.now(UTC))
    finally:
        engine.dispose()
