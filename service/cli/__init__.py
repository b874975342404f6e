"""`hush`: the command line. Heavy imports wait until a command runs, so that `--help` answers at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from data_pipeline.cli import app as data_app
from service.cli import data_sets, jobs, logs, production, results, studies, tenants, tokens, webhooks
from service.cli.options import ADMINISTRATION, DATA, JOBS, SERVICE, AsJson, Home, NumCpus
from service.cli.session import one_line_errors

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
app.add_typer(jobs.app)
app.add_typer(logs.app)
app.add_typer(results.app)
app.add_typer(studies.app, name="study", rich_help_panel=JOBS)
app.add_typer(production.app)
app.add_typer(data_app, name="data", rich_help_panel=DATA)
app.add_typer(data_sets.app, name="data-set", rich_help_panel=DATA)
app.add_typer(tokens.app, name="token", rich_help_panel=ADMINISTRATION)
app.add_typer(tenants.app, name="tenant", rich_help_panel=ADMINISTRATION)
app.add_typer(webhooks.app, name="webhook", rich_help_panel=ADMINISTRATION)


@app.command("serve", rich_help_panel=SERVICE)
def serve_command(
    *,
    home: Home = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: other machines may come in.")] = "127.0.0.1",
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

    API, Ray and MLflow, with all data in one folder, reachable from this machine only. With another --host the API lets
    in other machines, too, if somebody has a token (hush token create); Ray and MLflow never do.

    Jobs that run when it stops are taken up again, from their last checkpoint, when it is started the next time.

    Example: hush serve --home /data/hush --port 8900
    """
    from service.embedded.home import home_folder
    from service.embedded.serve import ServeOptions, StopSignals, serve
    from service.embedded.serve_screen import ServeScreen

    with one_line_errors(), ServeScreen(home_folder(home)) as screen:
        serve(ServeOptions(home_folder(home), host, port, num_cpus, warm), screen.show, StopSignals())


@app.command("demo", rich_help_panel=SERVICE)
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

    with one_line_errors():
        raise typer.Exit(run_demo(DemoOptions(home_folder(home), keep=keep, num_cpus=num_cpus, as_json=as_json)))


def main() -> None:
    """Entry point of the `hush` command."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
