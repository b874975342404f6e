"""The token of this machine, which `hush serve` makes at each start and the commands on the home folder use."""

from __future__ import annotations

from datetime import UTC, datetime

from service.access.principal import DEFAULT_TENANT
from service.access.roles import Role
from service.access.tokens import LOCAL_NAME
from service.settings import Settings
from service.store.database import open_engine
from service.store.tokens import NewToken, Tokens


def local_token(settings: Settings) -> str:
    """A new one; that of the start before is worthless from now on. The database is there already."""
    engine = open_engine(settings.database)
    try:
        return Tokens(engine).replace_local(NewToken(DEFAULT_TENANT, LOCAL_NAME, Role.ADMIN), datetime.now(UTC))
    finally:
        engine.dispose()
