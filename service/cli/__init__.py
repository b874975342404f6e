"""`hush`: the command line. Heavy imports wait until a command runs, so that `--help` answers at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.cli import app as data_app

if TYPE_CHECKING:
    from pydantic import BaseModel

    from service.client import HushClient

USAGE_ERROR = 2
JOB_FAILED = 1
INTERRUPTED = 130

_HELP = """Train robust, calibrated image classifiers on noisily labelled data, and see which labels to look at.

\b
  hush demo                              see it all work in a few minutes
  hush serve                             start the service on this machine
  hush data build clothing1m SRC OUT     make shards of your data
  hush submit job.yaml --follow          train on them
  hush examples JOB                      the most likely mislabelled examples
"""

app = typer.Typer(
    name="hush",
    no_args_is_help=True,
    help=_HELP,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")

Home = Annotated[
    Path | None,
    typer.Option(envvar="HUSH_HOME", help="Folder of all data of the service.", show_default="~/.hush"),
]
Url = Annotated[
    str | None,
    typer.Option(envvar="HUSH_URL", help="Address of the service; unset: the one that serves the home folder."),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, or a name: then the newest job of that name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Watch until the job has ended; Ctrl-C only detaches.")]
NumCpus = Annotated[int | None, typer.Option(min=1, help="CPUs that jobs may use in all.", show_default="all")]


@app.command("serve")
def serve_command(
    *,
    home: Home = None,
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of the API; 0: any free one.", show_default="8900, or a free one"),
    ] = None,
    num_cpus: NumCpus = None,
    warm: Annotated[
        bool, typer.Option("--warm/--no-warm", help="Keep workers ready for the next job, in a gigabyte of memory.")
    ] = True,
) -> None:
    """Start the service on this machine, until Ctrl-C.

    API, Ray and MLflow, with all data in one folder, reachable from this machine only.

    Jobs that run when it stops are taken up again, from their last checkpoint, when it is started the next time.

    Example: hush serve --home /data/hush --port 8900
    """
    from service.embedded.home import home_folder
    from service.embedded.serve import ServeOptions, StopSignals, serve
    from service.embedded.serve_screen import ServeScreen

    with _one_line_errors(), ServeScreen(home_folder(home)) as screen:
        serve(ServeOptions(home_folder(home), host, port, num_cpus, warm), screen.show, StopSignals())


@app.command("submit")
def submit_command(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The job; see examples/ and the API's /docs.")],
    *,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Change a field of the spec, e.g. method.lr=0.1; repeatable."
        ),
    ] = None,
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
    from service.api.views import API
    from service.cli.follow import follow_job
    from service.cli.spec_file import read_job

    with _one_line_errors(), _client(url, home) as client:
        job = client.submit(read_job(spec, overrides or []))
        if follow:
            code = follow_job(client, job, as_json=as_json)
            raise typer.Exit(code)
        if as_json:
            _print_json(job)
        else:
            typer.echo(f"{job.name} submitted as {job.id}")
            typer.echo(f"  follow   hush events {job.id} --follow")
            typer.echo(f"  API      {client.url}{API}/jobs/{job.id}")


@app.command("jobs")
def jobs_command(
    *,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state, e.g. RUNNING.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """List jobs, newest first."""
    from itertools import islice

    from service.cli.screen import print_jobs
    from service.jobs.states import JobState

    with _one_line_errors(), _client(url, home) as client:
        if state is not None and state.upper() not in JobState.__members__:
            raise ValueError(f"--state {state}: must be one of {', '.join(JobState)}")
        wanted = None if state is None else JobState(state.upper())
        jobs = list(islice(client.jobs(state=wanted, name=name, page=min(limit, 100)), limit))
    if as_json:
        _print_json_list(jobs)
    else:
        print_jobs(jobs)


@app.command("show")
def show_command(job: Job, *, as_json: AsJson = False, url: Url = None, home: Home = None) -> None:
    """Show a job: state, progress, newest figures."""
    from service.cli.screen import print_job
    from service.client import NotFoundError

    with _one_line_errors(), _client(url, home) as client:
        found = client.job(_job_id(client, job))
        try:
            evaluation = client.evaluation(found.id)
        except NotFoundError:
            evaluation = None
        noise = client.label_noise(found.id)
        newest = noise[-1] if noise else None
    if as_json:
        parts = {"job": found, "evaluation": evaluation, "label_noise": newest}
        typer.echo(json.dumps({key: part and part.model_dump(mode="json") for key, part in parts.items()}))
    else:
        print_job(found, evaluation, newest)


@app.command("events")
def events_command(
    job: Job, *, follow: Follow = False, as_json: AsJson = False, url: Url = None, home: Home = None
) -> None:
    """Show what happened to a job.

    That is its states, and the figures of each finished epoch. With --follow: go on until the job has ended; exit codes
    as those of `hush submit --follow`.
    """
    from service.cli.follow import follow_job
    from service.cli.screen import print_event

    with _one_line_errors(), _client(url, home) as client:
        job_id = _job_id(client, job)
        if follow:
            code = follow_job(client, client.job(job_id), as_json=as_json)
            raise typer.Exit(code)
        events = list(client.events(job_id))
    if as_json:
        _print_json_list(events)
    else:
        for event in events:
            print_event(event)


@app.command("cancel")
def cancel_command(job: Job, *, as_json: AsJson = False, url: Url = None, home: Home = None) -> None:
    """Ask a job to stop. What it has by then is kept."""
    with _one_line_errors(), _client(url, home) as client:
        cancelled = client.cancel(_job_id(client, job))
    if as_json:
        _print_json(cancelled)
    else:
        typer.echo(f"{cancelled.name} is {cancelled.state}")


@app.command("examples")
def examples_command(
    job: Job,
    *,
    sort: Annotated[str, typer.Option(help="suspicion (mislabelled?), ambiguity, loss, margin, entropy, aum, …")] = (
        "suspicion"
    ),
    given_class: Annotated[str | None, typer.Option(help="Only examples whose given label is this class.")] = None,
    epoch: Annotated[int | None, typer.Option(min=1, help="After this epoch.", show_default="the newest")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """List a job's most suspect examples.

    The most likely mislabelled come first, or --sort by another column.

    Example: hush examples clothing-photos-ivon --given-class Shirt --sort ambiguity --limit 50
    """
    from itertools import islice

    from service.cli.screen import console, example_sort, examples_table

    with _one_line_errors(), _client(url, home) as client:
        job_id = _job_id(client, job)
        label = None if given_class is None else _label(client, job_id, given_class)
        query = client.examples(job_id, sort=example_sort(sort), epoch=epoch, given_label=label, page=min(limit, 200))
        examples = list(islice(query, limit))
    if as_json:
        _print_json_list(examples)
    else:
        console().print(examples_table(examples) if examples else "no examples")


@app.command("demo")
def demo_command(
    *,
    home: Home = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service up, with the results, until Ctrl-C.")] = False,
    num_cpus: NumCpus = None,
    as_json: AsJson = False,
) -> None:
    """See it all work in a few minutes.

    Builds a data set of handwritten digits with 30% wrong labels, starts the service, trains with IVON and with SGD +
    label smoothing, shows which labels look wrong, and stops the service again. The results stay: `hush serve` serves
    them. Needs no network.
    """
    from service.cli.demo import DemoOptions, run_demo
    from service.embedded.home import home_folder

    with _one_line_errors():
        raise typer.Exit(run_demo(DemoOptions(home_folder(home), keep=keep, num_cpus=num_cpus, as_json=as_json)))


def main() -> None:
    """Entry point of the `hush` command."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What a user can mend becomes a line on stderr and exit code 2."""
    from service.client import HushError
    from service.embedded.serve import EmbeddedError

    try:
        yield
    except (HushError, EmbeddedError, ValueError, OSError) as error:
        for line in str(error).splitlines():
            typer.echo(f"hush: {line}", err=True)
        raise typer.Exit(USAGE_ERROR) from None


def _client(url: str | None, home: Path | None) -> HushClient:
    """A client of the service at `url`, else of the one that serves the home folder."""
    from service.client import HushClient, UnreachableError
    from service.embedded.home import find_server, home_folder

    if url is not None:
        return HushClient(url)
    server = find_server(home_folder(home))
    if server is None:
        raise UnreachableError(
            f"no service runs on {home_folder(home)}; start one with: hush serve (or name another with --url)"
        )
    return HushClient(server.url)


def _job_id(client: HushClient, job: str) -> str:
    """The id itself, or that of the newest job of this name."""
    from service.jobs.ids import is_id

    if is_id(job):
        return job
    newest = next(client.jobs(name=job, page=1), None)
    if newest is None:
        raise ValueError(f"there is no job of name or id {job!r}; `hush jobs` lists them")
    return newest.id


def _label(client: HushClient, job_id: str, given_class: str) -> int:
    classes = client.evaluation(job_id).classes
    if given_class not in classes:
        raise ValueError(f"--given-class {given_class!r}: must be one of {', '.join(classes)}")
    return classes.index(given_class)


def _print_json(model: BaseModel) -> None:
    typer.echo(model.model_dump_json())


def _print_json_list(models: Sequence[BaseModel]) -> None:
    typer.echo(json.dumps([model.model_dump(mode="json") for model in models]))
