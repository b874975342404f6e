"""`hush study`: jobs that are made, compared and cancelled together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson, Home, Limit, Now, Overrides, Url
from service.cli.session import print_json, print_json_list, session

if TYPE_CHECKING:
    from service.client import Client

_HELP = """Compare methods on equal terms: a study is a base job, and what is changed in it.

\b
  hush study create study.yaml           submit all its jobs
  hush study show STUDY                  the best of each method, over the seeds
  hush study cancel STUDY                stop them all
"""

app = typer.Typer(no_args_is_help=True, help=_HELP)

Study = Annotated[
    str, typer.Argument(metavar="STUDY", help="Id of a study, or a name: then the newest study of that name.")
]


@app.command("create")
def create_command(
    spec: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study; see the API's /docs.")],
    *,
    overrides: Overrides = None,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """Create a study and submit all its jobs, or, if any is wrong, none.

    Relative paths in the base and the points are looked for in this folder first, then in the study's.

    \b
    A study.yaml:
      name: rho
      base: {data: {manifest: shards/manifest.json}, schedule: {epochs: 10}}
      grid: {method.kind: [sam], method.rho: [0.02, 0.05, 0.1]}
      points: [{method: {kind: ivon}}]
      seeds: [0, 1, 2]
    """
    from service.cli.spec_file import read_study

    with session(url, home) as client:
        study = client.create_study(read_study(spec, overrides or []))
    if as_json:
        print_json(study)
    else:
        typer.echo(f"{study.name} created as {study.id}: {study.num_jobs} jobs")
        typer.echo(f"  compare  hush study show {study.id}")


@app.command("list")
def list_command(*, limit: Limit = 20, as_json: AsJson = False, url: Url = None, home: Home = None) -> None:
    """List studies, newest first."""
    from itertools import islice

    from service.cli.study_screen import print_studies

    with session(url, home) as client:
        studies = list(islice(client.studies(page=min(limit, 100)), limit))
    if as_json:
        print_json_list(studies)
    else:
        print_studies(studies)


@app.command("show")
def show_command(
    study: Study,
    *,
    all_points: Annotated[bool, typer.Option("--all", help="Every point, not only the best of each method.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every point as CSV.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """Compare what has come out of a study so far.

    For each method and target the point that is best on val, with its figures on test: test itself decides nothing.

    \b
    Examples:
      hush study show rho --all
      hush study show rho --csv > rho.csv
    """
    from service.cli.study_screen import print_study

    with session(url, home) as client:
        study_id = _study_id(client, study)
        if as_csv:
            typer.echo(client.comparison_csv(study_id), nl=False)
            return
        found, comparison = client.study(study_id), client.comparison(study_id)
    if as_json:
        parts = {"study": found.model_dump(mode="json"), "comparison": comparison.model_dump(mode="json")}
        typer.echo(json.dumps(parts))
    else:
        print_study(found, comparison, all_points=all_points)


@app.command("cancel")
def cancel_command(
    study: Study, *, now: Now = False, as_json: AsJson = False, url: Url = None, home: Home = None
) -> None:
    """Ask all jobs of a study to stop, each after a last checkpoint. What they have by then is kept."""
    from service.cli.study_screen import counts

    with session(url, home) as client:
        cancelled = client.cancel_study(_study_id(client, study), "now" if now else "graceful")
    if as_json:
        print_json(cancelled)
    else:
        typer.echo(f"{cancelled.name} is {cancelled.state}: {counts(cancelled)}")


def _study_id(client: Client, study: str) -> str:
    """The id itself, or that of the newest study of this name."""
    from service.jobs.ids import is_id

    if is_id(study):
        return study
    found = next((summary.id for summary in client.studies() if summary.name == study), None)
    if found is None:
        raise ValueError(f"there is no study of name or id {study!r}; `hush study list` lists them")
    return found
