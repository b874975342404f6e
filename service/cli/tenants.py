"""`hush tenant`: limits of tenants, written straight into the database by whoever runs the service."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.database import DatabaseUrl, check_tenant, database
from service.cli.options import AsJson, Home

if TYPE_CHECKING:
    from service.jobs.records import TenantLimits

app = typer.Typer(no_args_is_help=True, help="Give tenants limits of their own, in the service's database.")

Limit = Annotated[str | None, typer.Option(metavar="N|none", help="`none`: as the settings of the service say.")]


@app.command("set")
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

    with database(home, database_url) as engine:
        check_tenant(name)
        tenants = Tenants(engine)
        old = tenants.limits().get(name, TenantLimits())
        limits = TenantLimits(
            _limit("--max-running-jobs", max_running_jobs, old.max_running_jobs),
            _limit("--max-workers", max_workers, old.max_workers),
        )
        tenants.set_limits(name, limits)
    typer.echo(f"{name}: {_limits_line(limits)}")


@app.command("list")
def list_command(*, home: Home = None, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List the tenants that have limits of their own."""
    from service.store.tenants import Tenants

    with database(home, database_url) as engine:
        known = Tenants(engine).limits()
    if as_json:
        typer.echo(json.dumps([{"name": name, **dataclasses.asdict(limits)} for name, limits in known.items()]))
    else:
        for name, limits in known.items():
            typer.echo(f"{name}: {_limits_line(limits)}")


def _limit(option: str, text: str | None, old: int | None) -> int | None:
    if text is None:
        return old
    if text == "none":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 0 < int(text) < 2**31):
        raise ValueError(f"{option} {text}: must be a whole number from 1, or none")
    return int(text)


def _limits_line(limits: TenantLimits) -> str:
    jobs, workers = limits.max_running_jobs, limits.max_workers
    default = "as the settings say"
    return (
        f"max_running_jobs {default if jobs is None else jobs}, max_workers {default if workers is None else workers}"
    )
