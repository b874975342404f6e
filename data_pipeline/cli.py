"""`hush data`: build, show and check data sets. Heavy imports wait until a command runs: `--help` answers at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from data_pipeline.build import BuildOptions
    from data_pipeline.manifest import Manifest
    from data_pipeline.sources.base import Source
    from data_pipeline.spec import Corruption

app = typer.Typer(no_args_is_help=True, help="Build data sets for training, and look at them.")
build_app = typer.Typer(
    no_args_is_help=True,
    help="Make shards and a manifest.json from a raw data set. Building twice gives the same bytes.",
)
app.add_typer(build_app, name="build")

USAGE_ERROR = 2
CHECK_FAILED = 1

Out = Annotated[Path, typer.Argument(help="Folder to write: shards, index files and manifest.json.")]
ManifestPath = Annotated[Path, typer.Argument(help="A data set's manifest.json.")]
CorruptionOption = Annotated[
    str | None,
    typer.Option(
        "--corruption",
        metavar="KIND:RATE",
        help="Inject label noise into the training split, e.g. pairflip:0.3 or symmetric:0.4; clean labels are kept.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the order in the shards and of injected noise.")]
ShardSize = Annotated[int, typer.Option(min=1, help="Most examples a shard.")]
Force = Annotated[bool, typer.Option("--force", help="Replace another data set that stands in OUT.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@build_app.command("clothing1m")
def build_clothing1m(
    src: Annotated[Path, typer.Argument(help="Folder in Clothing1M's layout, or an uncompressed .tar of it.")],
    out: Out,
    *,
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "clothing1m",
    corruption: CorruptionOption = None,
    seed: Seed = 0,
    shard_size: ShardSize = 2000,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build from Clothing1M, or from any data set in its layout.

    Train takes the noisy labels, less every picture that is in val or test; the clean label is kept where it is known.

    Example: hush data build clothing1m ~/clothing1m data/clothing1m
    """
    from data_pipeline.sources.clothing1m import Clothing1M  # noqa: PLC0415 -- only this command needs it

    with _one_line_errors(), Clothing1M(src, name) as source:
        _build(source, out, _options(corruption, seed, shard_size, force=force), as_json=as_json)


@build_app.command("digits")
def build_digits(
    out: Out,
    *,
    corruption: CorruptionOption = None,
    seed: Seed = 0,
    shard_size: ShardSize = 2000,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build from scikit-learn's bundled handwritten digits (1,797 real scans of 8 x 8 pixels): no download.

    Example: hush data build digits data/digits --corruption pairflip:0.3
    """
    from data_pipeline.sources.digits import Digits  # noqa: PLC0415 -- scikit-learn takes a second to import

    with _one_line_errors():
        _build(Digits(), out, _options(corruption, seed, shard_size, force=force), as_json=as_json)


@build_app.command("mnist")
def build_mnist(
    src: Annotated[Path, typer.Argument(help="Folder with train- and t10k- idx files, gzipped or plain.")],
    out: Out,
    *,
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "mnist",
    classes: Annotated[
        str, typer.Option(metavar="digits|fashion|NAME,NAME,…", help="Names of the classes, in label order.")
    ] = "digits",
    num_val: Annotated[int, typer.Option(min=0, help="Training examples to hold out as val.")] = 0,
    val_seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed that draws them.")] = 0,
    corruption: CorruptionOption = None,
    seed: Seed = 0,
    shard_size: ShardSize = 2000,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build from MNIST, Fashion-MNIST or another set of idx files in their form.

    Injected noise goes into train only: val and test keep their labels.

    Example: hush data build mnist ~/fashion-mnist data/fashion --name fashion-mnist --classes fashion --num-val 5000
    """
    from data_pipeline.sources.mnist import Mnist  # noqa: PLC0415 -- numpy, Pillow

    with _one_line_errors():
        source = Mnist(src, name, _class_names(classes), num_val=num_val, val_seed=val_seed)
        _build(source, out, _options(corruption, seed, shard_size, force=force), as_json=as_json)


@app.command("show")
def show(manifest: ManifestPath, as_json: AsJson = False) -> None:
    """Show what a data set holds."""
    from data_pipeline.manifest import Manifest  # noqa: PLC0415 -- pydantic, when needed

    with _one_line_errors():
        _print_summary(Manifest.load(manifest), (), as_json=as_json)


@app.command("check")
def check(manifest: ManifestPath, as_json: AsJson = False) -> None:
    """Read every file of a data set and compare it with the manifest's checksums; exit code 1 if one differs."""
    from data_pipeline.manifest import Manifest  # noqa: PLC0415 -- pydantic, when needed

    with _one_line_errors():
        loaded = Manifest.load(manifest)
        problems = loaded.verify()
    if as_json:
        typer.echo(json.dumps({"name": loaded.name, "digest": loaded.digest, "problems": problems}))
    else:
        typer.echo("\n".join(problems) or f"{loaded.name}: all files are as the manifest says")
    raise typer.Exit(CHECK_FAILED if problems else 0)


def parse_corruption(text: str, seed: int) -> Corruption:
    """`pairflip:0.3` -> PairflipCorruption(rate=0.3)."""
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 -- when needed

    from data_pipeline.spec import Corruption  # noqa: PLC0415 -- when needed

    kind, _, rate = text.partition(":")
    adapter: TypeAdapter[Corruption] = TypeAdapter(Corruption)
    try:
        return adapter.validate_python({"kind": kind, "rate": rate, "seed": seed})
    except ValidationError:
        raise ValueError(
            f"--corruption {text!r} must be KIND:RATE, KIND symmetric or pairflip, RATE above 0 and below 1"
        ) from None


def _class_names(text: str) -> tuple[str, ...]:
    """`digits`, `fashion`, or the names themselves, between commas."""
    from data_pipeline.sources.mnist import DIGIT_CLASSES, FASHION_CLASSES  # noqa: PLC0415 -- numpy, Pillow

    known = {"digits": DIGIT_CLASSES, "fashion": FASHION_CLASSES}
    names = known.get(text) or tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise ValueError(f"--classes {text!r} must be digits, fashion, or at least two different names between commas")
    return names


def _options(corruption: str | None, seed: int, shard_size: int, *, force: bool) -> BuildOptions:
    from data_pipeline.build import BuildOptions  # noqa: PLC0415 -- OpenCV and Arrow

    return BuildOptions(
        seed=seed,
        shard_size=shard_size,
        corruption=None if corruption is None else parse_corruption(corruption, seed),
        force=force,
    )


def _build(source: Source, out: Path, options: BuildOptions, *, as_json: bool) -> None:
    from rich.console import Console  # noqa: PLC0415 -- when needed
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn  # noqa: PLC0415 -- same
    from rich.progress import Progress as Bars  # noqa: PLC0415 -- when needed

    from data_pipeline.build import Progress, build  # noqa: PLC0415 -- OpenCV and Arrow

    bars = Bars(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=as_json or not sys.stderr.isatty(),
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}

    def show_progress(progress: Progress) -> None:
        if progress.split not in tasks:
            tasks[progress.split] = bars.add_task(progress.split, total=progress.num_total)
        bars.update(tasks[progress.split], completed=progress.num_done)

    with bars:
        result = build(source, out, options, show_progress)
    notes = (
        source.notes
        if result.is_new
        else (*source.notes, "this very data set stood there already: nothing was changed")
    )
    _print_summary(result.manifest, notes, as_json=as_json)


def _print_summary(manifest: Manifest, notes: tuple[str, ...], *, as_json: bool) -> None:
    path = manifest.root / "manifest.json"
    if as_json:
        splits = {name: split.model_dump(exclude={"shards"}) for name, split in manifest.splits.items()}
        skipped = [example.model_dump() for example in manifest.skipped]
        summary = {"name": manifest.name, "manifest": str(path), "digest": manifest.digest, "splits": splits}
        typer.echo(json.dumps({**summary, "skipped": skipped, "notes": notes}))
        return
    from rich.console import Console  # noqa: PLC0415 -- when needed
    from rich.table import Table  # noqa: PLC0415 -- when needed

    table = Table("split", title=f"{manifest.name}: {len(manifest.classes)} classes")
    for column in ("examples", "listed", "skipped", "clean label known", "shards", "MB"):
        table.add_column(column, justify="right")
    for name, split in manifest.splits.items():
        size_mb = sum(shard.size_bytes for shard in split.shards) / 1e6
        counts = (split.num_examples, split.num_listed, split.num_listed - split.num_examples, split.num_clean_labels)
        table.add_row(name, *(f"{count:,}" for count in counts), str(len(split.shards)), f"{size_mb:.1f}")
    console = Console()
    console.print(table)
    for example in manifest.skipped[:10]:
        console.print(f"skipped {example.split} {example.example_id}: {example.reason}", markup=False, soft_wrap=True)
    if len(manifest.skipped) > 10:
        console.print(f"… and {len(manifest.skipped) - 10:,} more; all stand in the manifest under `skipped`")
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"manifest {path}\ndigest   {manifest.digest}", markup=False, soft_wrap=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE_ERROR) from None
