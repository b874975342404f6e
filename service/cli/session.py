"""What every command on the client begins and ends with: the service found, errors in one line, JSON printed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

    from service.client import Client

USAGE_ERROR = 2
CONNECT_MAX_S = 2.0
"""Who mistyped an address should hear so soon."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend becomes a line on stderr and exit code 2."""
    from service.client import HushError, UnauthorizedError
    from service.embedded.serve import EmbeddedError

    try:
        yield
    except (HushError, EmbeddedError, ValueError, OSError) as error:
        for line in str(error).splitlines():
            typer.echo(f"hush: {line}", err=True)
        if isinstance(error, UnauthorizedError):
            typer.echo("hush: HUSH_TOKEN must hold a token; an admin makes one with: hush token create", err=True)
        raise typer.Exit(USAGE_ERROR) from None


@contextmanager
def session(url: str | None, home: Path | None) -> Iterator[Client]:
    """A client of the service at `url`, else of the one that serves the home folder; errors in one line."""
    with one_line_errors():
        from service.client import Client, Retry
        from service.client.address import find_address

        found = find_address(os.environ, url, home)
        with Client(found.url, found.token, retry=Retry(connect_max_s=CONNECT_MAX_S)) as client:
            yield client


def job_id_of(client: Client, job: str) -> str:
    """The id itself, or that of the newest job of this name."""
    from service.jobs.ids import is_id

    if is_id(job):
        return job
    newest = next(client.jobs(name=job, page=1), None)
    if newest is None:
        raise ValueError(f"there is no job of name or id {job!r}; `hush jobs` lists them")
    return newest.id


def print_json(model: BaseModel) -> None:
    """A JSON document."""
    typer.echo(model.model_dump_json())


def print_json_list(models: Sequence[BaseModel]) -> None:
    """A JSON array."""
    typer.echo(json.dumps([model.model_dump(mode="json") for model in models]))
