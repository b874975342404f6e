"""`hush data-set`: manifests that the service knows by name, and how checks of their files went."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from service.cli.options import AsJson, Home, Limit, Url
from service.cli.session import print_json, print_json_list, session

if TYPE_CHECKING:
    from service.client import Client
    from service.data_set_schemas import DataSetView

app = typer.Typer(no_args_is_help=True, help="Register manifests with the service, and have it check their files.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the data set.")]

LOOK_S: Final = 0.5
DAMAGED: Final = 1


@app.command("register")
def register_command(
    name: Name,
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="Path or address of its manifest.json.")],
    *,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """Keep what a manifest says under a name.

    Example: hush data-set register clothing1m data/clothing1m/manifest.json
    """
    place = manifest if "://" in manifest else str(Path(manifest).expanduser().absolute())
    with session(url, home) as client:
        made = client.register_data_set(name, place)
    if as_json:
        print_json(made)
    else:
        _show(made)


@app.command("list")
def list_command(*, limit: Limit = 20, as_json: AsJson = False, url: Url = None, home: Home = None) -> None:
    """List data sets, newest first."""
    from itertools import islice

    from service.cli.screen import console, plain_table

    with session(url, home) as client:
        found = list(islice(client.data_sets(page=min(limit, 100)), limit))
    if as_json:
        print_json_list(found)
        return
    table = plain_table("name", "examples", "classes", "last check", "manifest", right=("examples", "classes"))
    for one in found:
        table.add_row(one.name, f"{one.num_examples:,}", str(len(one.classes)), _checked(one), one.manifest)
    console().print(table)


@app.command("show")
def show_command(name: Name, *, as_json: AsJson = False, url: Url = None, home: Home = None) -> None:
    """Show what a data set holds, and how its last check went."""
    with session(url, home) as client:
        found = client.data_set(name)
    if as_json:
        print_json(found)
    else:
        _show(found)


@app.command("check")
def check_command(name: Name, *, as_json: AsJson = False, url: Url = None, home: Home = None) -> None:
    """Have the service hold every file and example against the manifest, and wait for it.

    Exit code 1 if something is not as the manifest says.
    """
    with session(url, home) as client:
        client.check_data_set(name)
        found = _wait(client, name)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if found.check is None or found.check.status != "ok":
        raise typer.Exit(DAMAGED)


def _wait(client: Client, name: str) -> DataSetView:
    """Watch a check to its end."""
    from service.cli.screen import console

    with console().status(f"checking {name}") as status:
        while True:
            found = client.data_set(name)
            if found.check is None or found.check.status != "running":
                return found
            status.update(f"checking {name}: {found.check.num_checked:,} of {found.num_examples:,} examples")
            time.sleep(LOOK_S)


def _show(found: DataSetView) -> None:
    from service.cli.screen import console, plain_table

    typer.echo(f"{found.name}: {found.title}, {found.num_examples:,} examples of {len(found.classes)} classes")
    table = plain_table("split", "examples", "clean labels", "shards", right=("examples", "clean labels", "shards"))
    for name, split in found.splits.items():
        table.add_row(name, f"{split.num_examples:,}", f"{split.num_clean_labels:,}", str(split.num_shards))
    console().print(table)
    typer.echo(f"check: {_checked(found)}")
    for problem in found.check.problems if found.check else ():
        where = problem.file if problem.example_id is None else f"{problem.file}, {problem.example_id}"
        typer.echo(f"  {where}: {problem.reason}")


def _checked(found: DataSetView) -> str:
    check = found.check
    if check is None:
        return "none yet"
    if check.status == "problems":
        return f"{check.num_problems:,} problems"
    return check.status if check.error is None else f"{check.status}: {check.error}"
