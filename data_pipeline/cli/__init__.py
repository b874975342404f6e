"""`hush data`: build, show and check data sets. Heavy imports wait until a command runs: `--help` answers at once."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

import typer

from data_pipeline.cli import build as cli_build
from data_pipeline.cli.terminal import AsJson, one_line_errors, print_summary, summary_json

app = typer.Typer(no_args_is_help=True, help="Build data sets for training, and look at them.")
app.add_typer(cli_build.app, name="build")

CHECK_FAILED = 1

ManifestPath = Annotated[str, typer.Argument(help="A data set's manifest.json: a path, s3:// or http(s)://.")]


@app.command("show")
def show(manifest: ManifestPath, as_json: AsJson = False) -> None:
    """Show what a data set holds: classes, counts, picture sizes, and given labels against clean ones where known."""
    from rich.console import Console  # noqa: PLC0415 -- when needed

    from data_pipeline.cli import summary_view  # noqa: PLC0415 -- when needed
    from data_pipeline.examples import open_split  # noqa: PLC0415 -- Arrow
    from data_pipeline.manifest import Manifest  # noqa: PLC0415 -- pydantic, when needed
    from data_pipeline.storage.patience import AT_A_TERMINAL  # noqa: PLC0415 -- when needed
    from data_pipeline.summary import summarise  # noqa: PLC0415 -- Arrow

    with one_line_errors():
        loaded = Manifest.load(manifest, AT_A_TERMINAL)
        summaries = {name: summarise(open_split(loaded, name)) for name, split in loaded.splits.items() if split.shards}
    if as_json:
        typer.echo(json.dumps({**summary_json(loaded), "contents": summary_view.as_json(summaries)}))
        return
    print_summary(loaded, (), as_json=False)
    summary_view.print_splits(Console(), loaded, summaries)


@app.command("check")
def check(
    manifest: ManifestPath,
    *,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode each picture too: finds those that were damaged before the build.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that check; else one a CPU, fewer for small sets.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every file of a data set and say what is wrong where: exit code 1 if anything is.

    Files are held against the manifest's checksums. In a shard that differs each picture is held against its own.
    """
    from rich.console import Console  # noqa: PLC0415 -- when needed
    from rich.progress import Progress as Bars  # noqa: PLC0415 -- when needed

    from data_pipeline.check import check as check_data_set  # noqa: PLC0415 -- OpenCV and Arrow
    from data_pipeline.cli import check_view  # noqa: PLC0415 -- when needed
    from data_pipeline.manifest import Manifest  # noqa: PLC0415 -- pydantic, when needed
    from data_pipeline.storage.patience import AT_A_TERMINAL  # noqa: PLC0415 -- when needed

    with one_line_errors():
        loaded = Manifest.load(manifest, AT_A_TERMINAL)
        quiet = as_json or not sys.stderr.isatty()
        with Bars(console=Console(stderr=True), disable=quiet, transient=True) as bars:
            bar = bars.add_task("checking", total=sum(split.num_examples for split in loaded.splits.values()))
            problems = check_data_set(
                loaded,
                decode_pictures=decode,
                num_processes=processes,
                on_step=lambda count: bars.advance(bar, count),
            )
    if as_json:
        found = [dataclasses.asdict(problem) for problem in problems]
        typer.echo(json.dumps({"name": loaded.name, "digest": loaded.digest, "problems": found}))
    else:
        check_view.print_problems(Console(), loaded, problems, decoded=decode)
    raise typer.Exit(CHECK_FAILED if problems else 0)
