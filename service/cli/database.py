"""The service's database, for commands of whoever runs the service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.session import one_line_errors

if TYPE_CHECKING:
    from sqlalchemy import Engine

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="HUSH_DATABASE_URL", help="Database of the service.", show_default="SQLite, in the home folder"
    ),
]


@contextmanager
def database(home: Path | None, url: str | None) -> Iterator[Engine]:
    """The database asked for, its schema up to date; errors in one line."""
    with one_line_errors():
        from sqlalchemy.exc import SQLAlchemyError

        from service.embedded.home import home_folder
        from service.settings import Settings
        from service.store.database import migrate, open_engine

        folder = home_folder(home)
        settings = Settings(home=folder, database_url=url)
        if url is None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            engine = open_engine(settings.database)
            migrate(engine)
        except SQLAlchemyError as error:
            raise ValueError(f"the database cannot be used: {str(error).splitlines()[0]}") from None
        try:
            yield engine
        finally:
            engine.dispose()


def check_tenant(tenant: str) -> None:
    """ValueError for what can be no tenant's name."""
    from service.access.principal import TENANT_PATTERN, is_tenant

    if not is_tenant(tenant):
        raise ValueError(f"tenant = {tenant!r}: must match {TENANT_PATTERN}")
