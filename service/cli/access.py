"""`hush token ...` and `hush tenant ...`: who may come in, written straight into the database.

For whoever runs the service, who has the database: so the first token can be made, before anybody has one. An admin who
has a token manages those of his tenant over the API.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.access.roles import Role
from service.cli.options import AsJson, Home
from service.cli.session import one_line_errors

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from service.access.tokens import TokenRecord
    from service.jobs.records import TenantLimits

_HELP = {"help_option_names": ["-h", "--help"]}

token_app = typer.Typer(
    no_args_is_help=True, context_settings=_HELP, help="Make and revoke tokens, in the database of the service."
)
tenant_app = typer.Typer(
    no_args_is_help=True, context_settings=_HELP, help="Give tenants limits of their own, in the service's database."
)

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="HUSH_DATABASE_URL", help="Database of the service.", show_default="SQLite, in the home folder"
    ),
]
Tenant = Annotated[str, typer.Option(help="All that the bearer sees and makes is this tenant's.")]
Limit = Annotated[str | None, typer.Option(metavar="N|none", help="`none`: as the settings of the service say.")]


@token_app.command("create")
def create_command(
    name: Annotated[str, typer.Argument(help="For people: who or what will bear it.")],
    *,
    role: Annotated[Role, typer.Option(help="`submitter` may do what `viewer` may and more, `admin` all.")] = (
        Role.SUBMITTER
    ),
    tenant: Tenant = "default",
    expires: Annotated[str, typer.Option(help="After how long it is worthless: 12h, 90d, 4w, never.")] = "90d",
    home: Home = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a token, and print it: nothing shows it again.

    \b
    Examples:
      hush token create alice --role admin
      export HUSH_TOKEN=$(hush token create ci --tenant vision --expires 12h)
    """
    from datetime import UTC, datetime

    from service.access.expiry import parse_lifetime
    from service.store.tokens import NewToken, Tokens

    with _database(home, database_url) as engine:
        _check_names(name, tenant)
        try:
            lifetime = parse_lifetime(expires)
        except ValueError as error:
            raise ValueError(f"--expires {error}") from None
        now = datetime.now(UTC)
        new = NewToken(tenant, name, role, None if lifetime is None else now + lifetime)
        record, token = Tokens(engine).create(new, now)
    if as_json:
        typer.echo(json.dumps({**_as_json(record), "token": token}))
    else:
        typer.echo(f"{record.id}: {role} of tenant {tenant}, good {_until(record)}; send it as HUSH_TOKEN", err=True)
        typer.echo(token)


@token_app.command("list")
def list_command(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    home: Home = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List tokens, newest first, with those that are good no longer."""
    from service.store.tokens import Tokens

    with _database(home, database_url) as engine:
        records = Tokens(engine).page(tenant, limit=10_000)
    if as_json:
        typer.echo(json.dumps([_as_json(record) for record in records]))
    else:
        _print_table(
            ("id", "tenant", "name", "role", "good"),
            [(record.id, record.tenant, record.name, record.role, _until(record)) for record in records],
        )


@token_app.command("revoke")
def revoke_command(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, as `hush token list` shows it.")],
    *,
    home: Home = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a token worthless, at once and for ever."""
    from datetime import UTC, datetime

    from service.store.tokens import Tokens

    with _database(home, database_url) as engine:
        record = Tokens(engine).revoke(token_id, datetime.now(UTC))
        if record is None:
            raise ValueError(f"there is no token of the id {token_id!r}; `hush token list` lists them")
    typer.echo(f"{record.name} of tenant {record.tenant} is revoked")


@tenant_app.command("set")
def set_command(
    name: Annotated[str, typer.Argument(help="Name of the tenant.")],
    *,
    max_running_jobs: Limit = None,
    max_workers: Limit = None,
    home: Home = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Limit what a tenant's jobs may take at a time. What is not given here stays as it is.

    Example: hush tenant set vision --max-running-jobs 4 --max-workers 16
    """
    from service.jobs.records import TenantLimits
    from service.store.tenants import Tenants

    with _database(home, database_url) as engine:
        _check_names(None, name)
        tenants = Tenants(engine)
        old = tenants.limits().get(name, TenantLimits())
        limits = TenantLimits(
            _limit("--max-running-jobs", max_running_jobs, old.max_running_jobs),
            _limit("--max-workers", max_workers, old.max_workers),
        )
        tenants.set_limits(name, limits)
    typer.echo(f"{name}: {_limits_line(limits)}")


@tenant_app.command("list")
def list_tenants_command(*, home: Home = None, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List the tenants that have limits of their own."""
    from service.store.tenants import Tenants

    with _database(home, database_url) as engine:
        known = Tenants(engine).limits()
    if as_json:
        typer.echo(json.dumps([{"name": name, **dataclasses.asdict(limits)} for name, limits in known.items()]))
    else:
        for name, limits in known.items():
            typer.echo(f"{name}: {_limits_line(limits)}")


@contextmanager
def _database(home: Path | None, url: str | None) -> Iterator[Engine]:
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


def _check_names(name: str | None, tenant: str) -> None:
    from service.access.principal import TENANT_PATTERN, is_tenant
    from service.access.tokens import NAME_PATTERN

    if name is not None and re.fullmatch(NAME_PATTERN, name) is None:
        raise ValueError(f"NAME = {name!r}: must match {NAME_PATTERN}")
    if not is_tenant(tenant):
        raise ValueError(f"tenant = {tenant!r}: must match {TENANT_PATTERN}")


def _limit(option: str, text: str | None, old: int | None) -> int | None:
    if text is None:
        return old
    if text == "none":
        return None
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:10]) < 2**31):
        raise ValueError(f"{option} {text}: must be a whole number from 1, or none")
    return int(text)


def _limits_line(limits: TenantLimits) -> str:
    jobs, workers = limits.max_running_jobs, limits.max_workers
    default = "as the settings say"
    return (
        f"max_running_jobs {default if jobs is None else jobs}, max_workers {default if workers is None else workers}"
    )


def _until(record: TokenRecord) -> str:
    if record.revoked_at is not None:
        return "no longer: revoked"
    return "until it is revoked" if record.expires_at is None else f"until {record.expires_at:%Y-%m-%d %H:%M} UTC"


def _as_json(record: TokenRecord) -> dict[str, str | None]:
    times = {name: getattr(record, name) for name in ("created_at", "expires_at", "revoked_at")}
    shown = {name: None if time is None else time.isoformat() for name, time in times.items()}
    return {"id": record.id, "tenant": record.tenant, "name": record.name, "role": record.role, **shown}


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from service.cli.screen import console, plain_table

    table = plain_table(*columns)
    for row in rows:
        table.add_row(*row)
    console().print(table)
