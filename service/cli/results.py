"""`hush examples`, `example`, `model`: what a job has found out, and what it has made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.options import JOBS, AsJson, Home, Job, Limit, Url
from service.cli.session import job_id_of, print_json, print_json_list, session

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer()


@app.command("examples", rich_help_panel=JOBS)
def examples_command(
    job: Job,
    *,
    sort: Annotated[str, typer.Option(help="suspicion (mislabelled?), ambiguity, loss, margin, entropy, aum, …")] = (
        "suspicion"
    ),
    given_class: Annotated[str | None, typer.Option(help="Only examples whose given label is this class.")] = None,
    epoch: Annotated[int | None, typer.Option(min=1, help="After this epoch.", show_default="the newest")] = None,
    limit: Limit = 20,
    output: Annotated[
        Path | None, typer.Option(help="Write all of them into this file instead: .csv or .parquet.", dir_okay=False)
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """List a job's most suspect examples.

    The most likely mislabelled come first, or --sort by another column.

    \b
    Examples:
      hush examples clothing-photos-ivon --given-class Shirt --sort ambiguity --limit 50
      hush examples clothing-photos-ivon --output examples.csv
    """
    from itertools import islice

    from service.cli.screen import console, example_sort, examples_table

    with session(url, home) as client:
        job_id = job_id_of(client, job)
        label = None if given_class is None else _label(client, job_id, given_class)
        if output is not None:
            kind, column = _kind_of(output), example_sort(sort)
            export = partial(client.export_examples, job_id, kind, sort=column, epoch=epoch, given_label=label)
            _write(output, export)
            return
        query = client.examples(job_id, sort=example_sort(sort), epoch=epoch, given_label=label, page=min(limit, 200))
        examples = list(islice(query, limit))
    if as_json:
        print_json_list(examples)
    else:
        console().print(examples_table(examples) if examples else "no examples")


def _label(client: Client, job_id: str, given_class: str) -> int:
    classes = client.evaluation(job_id).classes
    if given_class not in classes:
        raise ValueError(f"--given-class {given_class!r}: must be one of {', '.join(classes)}")
    return classes.index(given_class)


@app.command("example", rich_help_panel=JOBS)
def example_command(
    job: Job,
    example: Annotated[str, typer.Argument(metavar="EXAMPLE", help="Name of the example, as `hush examples` says it.")],
    *,
    image: Annotated[Path | None, typer.Option(help="Write the picture into this file.", dir_okay=False)] = None,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """Show one example of a job over the epochs, and fetch its picture.

    Example: hush example clothing-photos-ivon 1-37-102,3 --image suspect.jpg
    """
    from service.cli.screen import console, history_table

    with session(url, home) as client:
        job_id = job_id_of(client, job)
        found = client.example(job_id, example)
        if as_json:
            print_json(found)
        else:
            console().print(history_table(found.history))
        if image is not None:
            _write(image, lambda: client.picture(job_id, example))


@app.command("model", rich_help_panel=JOBS)
def model_command(
    job: Job,
    *,
    output: Annotated[Path | None, typer.Option(help="Write the weights into this file.", dir_okay=False)] = None,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """Say where a job's model is, and fetch it.

    The file is a state dict: torch.load("model.pt", weights_only=True).

    Example: hush model clothing-photos-ivon --output model.pt
    """
    from service.cli.screen import console, model_lines

    with session(url, home) as client:
        job_id = job_id_of(client, job)
        found = client.model(job_id)
        if as_json:
            print_json(found)
        else:
            console().print(model_lines(found), soft_wrap=True)
        if output is not None:
            _write(output, lambda: _whole(client.weights(job_id), found.sha256))


def _kind_of(output: Path) -> Literal["csv", "parquet"]:
    match output.suffix.lower():
        case ".csv":
            return "csv"
        case ".parquet":
            return "parquet"
        case _:
            raise ValueError(f"--output {output}: must end in .csv or .parquet")


def _whole(content: bytes, sha256: str | None) -> bytes:
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("the weights are not those that the job's result names; it may have been trained on since")
    return content


def _write(path: Path, fetch: Callable[[], bytes]) -> None:
    """Fetch what is to be in a file, once it can be written: whole, or not at all. Said on stderr, as stdout may be
    JSON."""
    from data_pipeline.storage.atomic_file import write_atomically

    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.absolute().parent}")
    content = fetch()
    try:
        write_atomically(path.absolute(), content)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
    typer.echo(f"{path}: {len(content):,} bytes", err=True)
