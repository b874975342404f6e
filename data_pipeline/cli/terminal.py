"""What `hush data` prints: tables for people, JSON for scripts, one line for an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from data_pipeline.manifest import Manifest

USAGE_ERROR = 2
INTERRUPTED = 130

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def print_summary(manifest: Manifest, notes: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**summary_json(manifest), "notes": notes}))
        return
    from rich.console import Console  # noqa: PLC0415 -- when needed
    from rich.markup import escape  # noqa: PLC0415 -- when needed
    from rich.table import Table  # noqa: PLC0415 -- when needed

    table = Table("split", title=f"{escape(manifest.name)}: {len(manifest.classes)} classes")
    for column in ("examples", "listed", "skipped", "clean label known", "shards", "MB"):
        table.add_column(column, justify="right")
    for name, split in manifest.splits.items():
        size_mb = sum(shard.size_bytes for shard in split.shards) / 1e6
        counts = (split.num_examples, split.num_listed, split.num_listed - split.num_examples, split.num_clean_labels)
        table.add_row(escape(name), *(f"{count:,}" for count in counts), str(len(split.shards)), f"{size_mb:.1f}")
    console = Console()
    console.print(table)
    for example in manifest.skipped[:10]:
        console.print(f"skipped {example.split} {example.example_id}: {example.reason}", markup=False, soft_wrap=True)
    if len(manifest.skipped) > 10:
        console.print(f"… and {len(manifest.skipped) - 10:,} more; all stand in the manifest under `skipped`")
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"manifest {manifest.url}\ndigest   {manifest.digest}", markup=False, soft_wrap=True)


def summary_json(manifest: Manifest) -> dict[str, object]:
    """What the manifest says, without the single shards."""
    return {
        "name": manifest.name,
        "manifest": manifest.url,
        "digest": manifest.digest,
        "classes": manifest.classes,
        "splits": {name: split.model_dump(exclude={"shards"}) for name, split in manifest.splits.items()},
        "corruption": None if manifest.recipe.corruption is None else manifest.recipe.corruption.model_dump(),
        "transition_matrix": manifest.recipe.transition_matrix,
        "skipped": [example.model_dump() for example in manifest.skipped],
    }


@contextmanager
def one_line_errors(stopped: str | None = None) -> Iterator[None]:
    """What went wrong, in a line, and exit code 2. `stopped`: what to say on Ctrl-C."""
    try:
        yield
    except (ValueError, OSError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            told = f"{error.filename}: {error.strerror}"  # without its number
        typer.echo(f"error: {told}", err=True)
        raise typer.Exit(USAGE_ERROR) from None
    except KeyboardInterrupt:
        if stopped is not None:
            typer.echo(stopped, err=True)
        raise typer.Exit(INTERRUPTED) from None
