"""`hush data`: build, show and check data sets. Heavy imports wait until a command runs: `--help` answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from data_pipeline import cli_build
from data_pipeline.terminal import AsJson, one_line_errors, print_summary

app = typer.Typer(no_args_is_help=True, help="Build data sets for training, and look at them.")
app.add_typer(cli_build.app, name="build")

CHECK_FAILED = 1

ManifestPath = Annotated[Path, typer.Argument(help="A data set's manifest.json.")]


@app.command("show")
def show(manifest: ManifestPath, as_json: AsJson = False) -> None:
    """Show what a data set holds."""
    from data_pipeline.manifest import Manifest  # noqa: PLC0415 -- pydantic, when needed

    with one_line_errors():
        print_summary(Manifest.load(manifest), (), as_json=as_json)


@app.command("check")
def check(manifest: ManifestPath, as_json: AsJson = False) -> None:
    """Read every file of a data set and compare it with the manifest's checksums; exit code 1 if one differs."""
    from data_pipeline.manifest import Manifest  # noqa: PLC0415 -- pydantic, when needed

    with one_line_errors():
        loaded = Manifest.load(manifest)
        problems = loaded.verify()
    if as_json:
        typer.echo(json.dumps({"name": loaded.name, "digest": loaded.digest, "problems": problems}))
    else:
        typer.echo("\n".join(problems) or f"{loaded.name}: all files are as the manifest says")
    raise typer.Exit(CHECK_FAILED if problems else 0)
