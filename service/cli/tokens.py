"""`hush token`: who may come in. Over the API, by an admin of the tenant; or straight in the database, by whoever runs
the service, who has it: so the first token can be made, before anybody has one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.access.roles import Role
from service.access.tokens import NAME_PATTERN, TokenRecord
from service.cli.database import DatabaseUrl, check_tenant, database
from service.cli.options import AsJson, Home
from service.cli.session import session

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from service.client import Client
    from service.schemas import TokenView

_HELP = """Make, list and revoke tokens.

With --url or HUSH_URL over the API, as the admin whose token HUSH_TOKEN holds: those of that tenant. Without, or with
--database-url, straight in the service's database, for whoever runs it.
"""

app = typer.Typer(no_args_is_help=True, help=_HELP)

Url = Annotated[
    str | None, typer.Option(envvar="HUSH_URL", help="Address of the service, to go over its API.", show_default=False)
]
Tenant = Annotated[
    str | None, typer.Option(help="Of this tenant; in the database only.", show_default="default, or all when listing")
]


@app.command("create")
def create_command(
    name: Annotated[str, typer.Argument(help="For people: who or what will bear it.")],
    *,
    role: Annotated[Role, typer.Option(help="`submitter` may do what `viewer` may and more, `admin` all.")] = (
        Role.SUBMITTER
    ),
    tenant: Tenant = None,
    expires: Annotated[str, typer.Option(help="After how long it is worthless: 12h, 90d, 4w, never.")] = "90d",
    url: Url = None,
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
    from service.access.expiry import parse_lifetime

    with _desk(_Place(url, home, database_url), tenant) as desk:
        try:
            lifetime = parse_lifetime(expires)
        except ValueError as error:
            raise ValueError(f"--expires {error}") from None
        record, token = desk.create(name, role, lifetime)
    if as_json:
        typer.echo(json.dumps({**_as_json(record), "token": token}))
    else:
        line = f"{record.id}: {record.role} of tenant {record.tenant}, good {_until(record)}; send it as HUSH_TOKEN"
        typer.echo(line, err=True)
        typer.echo(token)


@app.command("list")
def list_command(
    *,
    tenant: Tenant = None,
    url: Url = None,
    home: Home = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List tokens, newest first, with those that are good no longer."""
    from service.cli.screen import console, plain_table

    with _desk(_Place(url, home, database_url), tenant) as desk:
        records = desk.all()
    if as_json:
        typer.echo(json.dumps([_as_json(record) for record in records]))
        return
    table = plain_table("id", "tenant", "name", "role", "good")
    for record in records:
        table.add_row(record.id, record.tenant, record.name, record.role, _until(record))
    console().print(table)


@app.command("revoke")
def revoke_command(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, as `hush token list` shows it.")],
    *,
    url: Url = None,
    home: Home = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a token worthless, at once and for ever."""
    with _desk(_Place(url, home, database_url), None) as desk:
        record = desk.revoke(token_id)
        if record is None:
            raise ValueError(f"there is no token of the id {token_id!r}; `hush token list` lists them")
    typer.echo(json.dumps(_as_json(record)) if as_json else f"{record.name} of tenant {record.tenant} is revoked")


@dataclass(frozen=True)
class _Place:
    """Where the tokens are."""

    url: str | None
    home: Path | None
    database_url: str | None


@dataclass(frozen=True)
class _InDatabase:
    """Tokens of a tenant, or of all, by whoever has the database."""

    engine: Engine
    tenant: str | None

    def create(self, name: str, role: Role, lifetime: timedelta | None) -> tuple[TokenRecord, str]:
        from service.store.tokens import NewToken, Tokens

        if re.fullmatch(NAME_PATTERN, name) is None:
            raise ValueError(f"NAME = {name!r}: must match {NAME_PATTERN}")
        now = datetime.now(UTC)
        new = NewToken(self.tenant or "default", name, role, None if lifetime is None else now + lifetime)
        return Tokens(self.engine).create(new, now)

    def all(self) -> list[TokenRecord]:
        from service.store.tokens import Tokens

        return Tokens(self.engine).page(self.tenant, limit=10_000)

    def revoke(self, token_id: str) -> TokenRecord | None:
        from service.store.tokens import Tokens

        return Tokens(self.engine).revoke(token_id, datetime.now(UTC))


@dataclass(frozen=True)
class _OverApi:
    """Tokens of the tenant whose admin asks."""

    client: Client
    tenant: str

    def create(self, name: str, role: Role, lifetime: timedelta | None) -> tuple[TokenRecord, str]:
        seconds = None if lifetime is None else int(lifetime.total_seconds())
        made = self.client.create_token(name, role, expires_in_s=seconds)
        return self._record(made), made.token

    def all(self) -> list[TokenRecord]:
        return [self._record(token) for token in self.client.tokens()]

    def revoke(self, token_id: str) -> TokenRecord | None:
        return self._record(self.client.revoke_token(token_id))

    def _record(self, token: TokenView) -> TokenRecord:
        return TokenRecord(
            token.id, self.tenant, token.name, token.role, token.created_at, token.expires_at, token.revoked_at
        )


@contextmanager
def _desk(place: _Place, tenant: str | None) -> Iterator[_InDatabase | _OverApi]:
    """Where tokens are handed out; errors in one line."""
    if place.url and not place.database_url:
        with session(place.url, place.home) as client:
            mine = client.whoami().tenant
            if tenant not in {None, mine}:
                raise ValueError(f"--tenant {tenant}: over the API it is that of HUSH_TOKEN, {mine}")
            yield _OverApi(client, mine)
        return
    with database(place.home, place.database_url) as engine:
        if tenant is not None:
            check_tenant(tenant)
        yield _InDatabase(engine, tenant)


def _until(record: TokenRecord) -> str:
    if record.revoked_at is not None:
        return "no longer: revoked"
    if record.expires_at is None:
        return "until it is revoked"
    return (
        f"{'until' if record.expires_at > datetime.now(UTC) else 'no longer:'} {record.expires_at:%Y-%m-%d %H:%M} UTC"
    )


def _as_json(record: TokenRecord) -> dict[str, str | None]:
    shown = asdict(record)
    times = {name: value.isoformat() for name, value in shown.items() if isinstance(value, datetime)}
    return shown | times
