"""`hush submit`, `jobs`, `show`, `events`, `cancel`, `retry`: a job from its spec to its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import JOBS, AsJson, Follow, Home, Job, Limit, Now, Overrides, Url
from service.cli.session import job_id_of, print_json, print_json_list, session

if TYPE_CHECKING:
    from service.client import Client
    from service.schemas import JobView

app = typer.Typer()


@app.command("submit", rich_help_panel=JOBS)
def submit_command(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The job; see examples/ and the API's /docs.")],
    *,
    overrides: Overrides = None,
    follow: Follow = False,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """Submit a job, and watch it with --follow.

    A relative data.manifest is looked for in this folder first, then in the spec's.

    With --follow: exit code 0 if the job has succeeded, 1 if it has not, 130 after Ctrl-C (the job goes on).

    \b
    Examples:
      hush submit examples/clothing-photos-ivon.yaml --follow
      hush submit job.yaml --set method.lr=0.1 --set schedule.epochs=3
    """
    from service.cli.spec_file import read_job

    with session(url, home) as client:
        _show_submitted(client, client.submit(read_job(spec, overrides or [])), follow=follow, as_json=as_json)


@app.command("jobs", rich_help_panel=JOBS)
def jobs_command(
    *,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state, e.g. RUNNING.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs of this name.")] = None,
    method: Annotated[str | None, typer.Option(help="Only jobs of this method, e.g. ivon.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """List jobs, newest first.

    Example: hush jobs --state running --method ivon --limit 100
    """
    from itertools import islice

    from service.cli.screen import job_state, print_jobs

    with session(url, home) as client:
        wanted = None if state is None else job_state(state)
        jobs = list(islice(client.jobs(state=wanted, name=name, method=method, page=min(limit, 100)), limit))
    if as_json:
        print_json_list(jobs)
    else:
        print_jobs(jobs)


@app.command("show", rich_help_panel=JOBS)
def show_command(job: Job, *, as_json: AsJson = False, url: Url = None, home: Home = None) -> None:
    """Show a job: state, progress, newest figures."""
    from service.cli.screen import print_attempts, print_job
    from service.client import NotFoundError

    with session(url, home) as client:
        found = client.job(job_id_of(client, job))
        try:
            evaluation = client.evaluation(found.id)
        except NotFoundError:
            evaluation = None
        noise, attempts = client.label_noise(found.id), client.attempts(found.id)
        newest = noise[-1] if noise else None
    if as_json:
        parts = {"job": found, "evaluation": evaluation, "label_noise": newest}
        shown = {key: part and part.model_dump(mode="json") for key, part in parts.items()}
        typer.echo(json.dumps({**shown, "attempts": [attempt.model_dump(mode="json") for attempt in attempts]}))
    else:
        print_job(found, evaluation, newest)
        print_attempts(attempts)


@app.command("events", rich_help_panel=JOBS)
def events_command(
    job: Job, *, follow: Follow = False, as_json: AsJson = False, url: Url = None, home: Home = None
) -> None:
    """Show what happened to a job.

    That is its states, and the figures of each finished epoch. With --follow: go on until the job has ended; exit codes
    as those of `hush submit --follow`.
    """
    from service.cli.follow import follow_job
    from service.cli.screen import print_event

    with session(url, home) as client:
        job_id = job_id_of(client, job)
        if follow:
            code = follow_job(client, client.job(job_id), as_json=as_json)
            raise typer.Exit(code)
        events = list(client.events(job_id))
    if as_json:
        print_json_list(events)
    else:
        for event in events:
            print_event(event)


@app.command("cancel", rich_help_panel=JOBS)
def cancel_command(
    job: Job,
    *,
    now: Now = False,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """Ask a job to stop, after a last checkpoint. What it has by then is kept.

    Example: hush cancel clothing-photos-ivon --now
    """
    with session(url, home) as client:
        cancelled = client.cancel(job_id_of(client, job), "now" if now else "graceful")
    if as_json:
        print_json(cancelled)
    else:
        typer.echo(f"{cancelled.name} is {cancelled.state}")


@app.command("retry", rich_help_panel=JOBS)
def retry_command(
    job: Job, *, follow: Follow = False, as_json: AsJson = False, url: Url = None, home: Home = None
) -> None:
    """Train a job on that has failed or was cancelled.

    That is a new job with the same spec, which goes on from the old one's last checkpoint. Exit codes with --follow as
    those of `hush submit --follow`.

    Example: hush retry clothing-photos-ivon --follow
    """
    with session(url, home) as client:
        _show_submitted(client, client.retry(job_id_of(client, job)), follow=follow, as_json=as_json)


def _show_submitted(client: Client, job: JobView, *, follow: bool, as_json: bool) -> None:
    from service.cli.follow import follow_job
    from service.schemas import API

    if follow:
        raise typer.Exit(follow_job(client, job, as_json=as_json))
    if as_json:
        print_json(job)
    else:
        typer.echo(f"{job.name} submitted as {job.id}")
        typer.echo(f"  follow   hush events {job.id} --follow")
        typer.echo(f"  API      {client.url}{API}/jobs/{job.id}")
