"""`hush logs`: what ranks and driver of a job printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import JOBS, AsJson, Home, Job, Url
from service.cli.session import job_id_of, print_json_list, session

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer()

DETACHED = 130


@app.command("logs", rich_help_panel=JOBS)
def logs_command(
    job: Job,
    *,
    rank: Annotated[int | None, typer.Option(min=0, max=999_999, help="Of this rank.", show_default="0")] = None,
    driver: Annotated[bool, typer.Option("--driver", help="Of the driver, which starts the ranks.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt.", show_default="the newest")] = None,
    tail: Annotated[int | None, typer.Option(min=1, help="Only the last lines.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended, or Ctrl-C.")] = False,
    list_all: Annotated[bool, typer.Option("--list", help="List which logs there are.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """Print what a job printed: all that a rank, or the driver, wrote.

    With --follow: of the newest attempt, and of those that take its place when the job recovers.

    \b
    Examples:
      hush logs JOB --tail 50
      hush logs JOB --rank 1 --follow
      hush logs JOB --driver --attempt 1
      hush logs JOB --list
    """
    if driver and rank is not None:
        raise typer.BadParameter("the driver has no rank", param_hint="--driver")
    if follow and (tail is not None or list_all):
        raise typer.BadParameter("goes without --tail and --list", param_hint="--follow")
    name = "driver" if driver else f"rank_{rank or 0:04d}"
    with session(url, home) as client:
        job_id = job_id_of(client, job)
        if follow:
            _follow(client, job_id, name, attempt, as_json=as_json)
        elif list_all:
            _list(client, job_id, as_json=as_json)
        else:
            attempt = attempt or _newest_attempt(client, job_id, name)
            text = client.log_text(job_id, attempt, name, tail_lines=tail)
            typer.echo(json.dumps({"attempt": attempt, "name": name, "text": text}) if as_json else text, nl=as_json)


def _newest_attempt(client: Client, job_id: str, name: str) -> int:
    """That has such a log: a job that recovers shows what the lost attempt said."""
    attempts = [log.attempt for log in client.logs(job_id) if log.name == name]
    if not attempts:
        raise ValueError(f"there is no log {name} of this job yet; those there are: hush logs {job_id} --list")
    return max(attempts)


def _list(client: Client, job_id: str, *, as_json: bool) -> None:
    from service.cli.screen import print_logs

    logs = client.logs(job_id)
    if as_json:
        print_json_list(logs)
    else:
        print_logs(logs)


def _follow(client: Client, job_id: str, name: str, attempt: int | None, *, as_json: bool) -> None:
    try:
        for piece in client.follow_log(job_id, name, attempt=attempt):
            typer.echo(piece.model_dump_json() if as_json else piece.text, nl=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(DETACHED) from None
