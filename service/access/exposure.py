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
    wrong = weak_secrets(settings)
    if settings.oidc_issuer is None and not _anybody_has_a_token(settings):
        url = make_url(settings.database).difference_update_query(["password"])
        database = url.render_as_string(hide_password=True)
        wrong.append(f"nobody has a token of {database}; make the first by: hush token create NAME --role admin")
    if wrong:
        wrong.append("mend that, or listen on 127.0.0.1")
        raise ValueError("\n".join(f"--host {host} lets other machines in: {line}" for line in wrong))


def _anybody_has_a_token(settings: Settings) -> bool:
    engine = open_engine(settings.database)
    try:
        migrate(engine)
        return Tokens(engine).any_good(datetime.now(UTC))
    finally:
        engine.dispose()
