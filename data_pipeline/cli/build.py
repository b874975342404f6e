"""`hush data build`: a command for each raw data set. Heavy imports wait until a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.cli.arguments import class_names, local_source, parse_corruption
from data_pipeline.cli.terminal import AsJson, one_line_errors, print_summary

if TYPE_CHECKING:
    from data_pipeline.building.build import BuildOptions, BuildResult
    from data_pipeline.sources.base import Source

GOES_ON = "stopped; the same command goes on from here"

app = typer.Typer(
    no_args_is_help=True,
    help="Make shards and a manifest.json from a raw data set. Building twice gives the same bytes; a build that was"
    " stopped goes on where it was.",
    epilog="To try it out: hush data build digits data/digits, then hush data show data/digits/manifest.json",
)

Out = Annotated[
    str, typer.Argument(help="Folder or s3://bucket/prefix to write: shards, index files and manifest.json.")
]
CorruptionOption = Annotated[
    str | None,
    typer.Option(
        "--corruption",
        metavar="KIND:LEVEL",
        help="Inject label noise into train: symmetric:RATE, pairflip:RATE or class_dependent:K,BETA;"
        " clean labels are kept.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the order in the shards and of injected noise.")]
ShardSize = Annotated[int, typer.Option(min=1, help="Most examples a shard.")]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that share the work; else one a CPU, fewer for small sets. Same result."),
]
MaxBadFraction = Annotated[
    float, typer.Option(min=0, max=1, help="Share of a split that may be unusable: it is listed and left out.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace another data set that stands in OUT.")]


@app.command("clothing1m")
def build_clothing1m(
    src: Annotated[str, typer.Argument(help="Folder in Clothing1M's layout, or an uncompressed .tar of it.")],
    out: Out,
    *,
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "clothing1m",
    only_original: Annotated[
        bool, typer.Option("--only-original", help="Refuse a set that is not of Clothing1M's own sizes.")
    ] = False,
    max_bad_fraction: MaxBadFraction = 0.01,
    corruption: CorruptionOption = None,
    seed: Seed = 0,
    shard_size: ShardSize = 2000,
    processes: Processes = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build from Clothing1M, or from any data set in its layout.

    Train takes the noisy labels, less every picture that is in val or test; the clean label is kept where it is known.

    Example: hush data build clothing1m ~/clothing1m data/clothing1m
    """
    from data_pipeline.sources.clothing1m import Clothing1M  # noqa: PLC0415 -- only this command needs it

    with one_line_errors(GOES_ON):
        options = _options(corruption, seed, shard_size, processes, max_bad_fraction=max_bad_fraction, force=force)
        _build(lambda: Clothing1M(local_source(src), name, only_original=only_original), out, options, as_json=as_json)


@app.command("digits")
def build_digits(
    out: Out,
    *,
    corruption: CorruptionOption = None,
    seed: Seed = 0,
    shard_size: ShardSize = 2000,
    processes: Processes = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build from scikit-learn's bundled handwritten digits (1,797 real scans of 8 x 8 pixels): no download.

    Example: hush data build digits data/digits --corruption pairflip:0.3
    """
    from data_pipeline.sources.digits import Digits  # noqa: PLC0415 -- scikit-learn takes a second to import

    with one_line_errors(GOES_ON):
        options = _options(corruption, seed, shard_size, processes, force=force)
        _build(lambda: nullcontext(Digits()), out, options, as_json=as_json)


Classes = Annotated[
    str, typer.Option(metavar="NAME,NAME,…|@FILE|NUMBER|digits|fashion", help="Names of the classes, in label order.")
]
NumVal = Annotated[int, typer.Option(min=0, help="Training examples to hold out as val.")]
ValSeed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed that draws them.")]


class CifarLabels(StrEnum):
    """Which labels of CIFAR-100 to take."""

    FINE = "fine"
    COARSE = "coarse"


@app.command("cifar")
def build_cifar(
    src: Annotated[str, typer.Argument(help="Folder with CIFAR-10 or CIFAR-100, unpacked: python or binary form.")],
    out: Out,
    *,
    name: Annotated[str | None, typer.Option(help="Name of the data set; cifar10 or cifar100 by default.")] = None,
    labels: Annotated[CifarLabels, typer.Option(help="CIFAR-100's 100 classes, or its 20 superclasses.")] = (
        CifarLabels.FINE
    ),
    num_val: NumVal = 0,
    val_seed: ValSeed = 0,
    corruption: CorruptionOption = None,
    seed: Seed = 0,
    shard_size: ShardSize = 2000,
    processes: Processes = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build from CIFAR-10 or CIFAR-100, whichever lies in SRC. The python form is read without unpickling it.

    With the same seed, symmetric and pairflip labels are those of Co-teaching+.

    Example: hush data build cifar ~/cifar-100-python data/cifar100 --corruption pairflip:0.2
    """
    from data_pipeline.sources.cifar import Cifar  # noqa: PLC0415 -- numpy, Pillow

    with one_line_errors(GOES_ON):
        options = _options(corruption, seed, shard_size, processes, force=force)
        _build(
            lambda: nullcontext(
                Cifar(local_source(src), name, labels=labels.value, num_val=num_val, val_seed=val_seed)
            ),
            out, options, as_json=as_json,
        )  # fmt: skip


@app.command("image-folder")
def build_image_folder(
    src: Annotated[str, typer.Argument(help="Folder with train/CLASS/…, val/CLASS/…, test/CLASS/…, or CLASS/….")],
    out: Out,
    *,
    name: Annotated[str | None, typer.Option(help="Name of the data set; the folder's by default.")] = None,
    are_clean: Annotated[
        bool, typer.Option("--are-clean", help="The folders are right: keep them as clean labels too.")
    ] = False,
    num_val: NumVal = 0,
    val_seed: ValSeed = 0,
    max_bad_fraction: MaxBadFraction = 0.01,
    corruption: CorruptionOption = None,
    seed: Seed = 0,
    shard_size: ShardSize = 2000,
    processes: Processes = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build from a folder of pictures for each class, as torchvision's ImageFolder reads it.

    Say --are-clean before injecting noise into right labels: else what they were is not kept.

    Example: hush data build image-folder ~/pets data/pets --num-val 500
    """
    from data_pipeline.sources.image_folder import ImageFolder  # noqa: PLC0415 -- only this command needs it

    with one_line_errors(GOES_ON):
        options = _options(corruption, seed, shard_size, processes, max_bad_fraction=max_bad_fraction, force=force)
        _build(
            lambda: nullcontext(
                ImageFolder(local_source(src), name, are_clean=are_clean, num_val=num_val, val_seed=val_seed)
            ),
            out, options, as_json=as_json, keeps_labels="; if the folders are right, say --are-clean",
        )  # fmt: skip


@app.command("mnist")
def build_mnist(
    src: Annotated[str, typer.Argument(help="Folder with train- and t10k- idx files, gzipped or plain.")],
    out: Out,
    *,
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "mnist",
    classes: Classes = "digits",
    num_val: NumVal = 0,
    val_seed: ValSeed = 0,
    corruption: CorruptionOption = None,
    seed: Seed = 0,
    shard_size: ShardSize = 2000,
    processes: Processes = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build from MNIST, Fashion-MNIST or another set of idx files in their form.

    Injected noise goes into train only: val and test keep their labels.

    Example: hush data build mnist ~/fashion-mnist data/fashion --name fashion-mnist --classes fashion --num-val 5000
    """
    from data_pipeline.sources.mnist import Mnist  # noqa: PLC0415 -- numpy, Pillow

    with one_line_errors(GOES_ON):
        options = _options(corruption, seed, shard_size, processes, force=force)
        names = class_names(classes)
        _build(
            lambda: nullcontext(Mnist(local_source(src), name, names, num_val=num_val, val_seed=val_seed)),
            out, options, as_json=as_json,
        )  # fmt: skip


@app.command("webdataset")
def build_webdataset(
    src: Annotated[str, typer.Argument(help="Folder with .tar shards in WebDataset's form, at any depth.")],
    *,
    classes: Classes,
    name: Annotated[str | None, typer.Option(help="Name of the data set; the folder's by default.")] = None,
    label: Annotated[str, typer.Option(metavar="KIND[:FIELD]", help="Where labels stand: cls, or json:label.")] = "cls",
    clean_label: Annotated[
        str | None, typer.Option(metavar="KIND[:FIELD]", help="Where clean labels stand, if they are known.")
    ] = None,
    are_clean: Annotated[
        bool, typer.Option("--are-clean", help="The labels are right: keep them as clean labels too.")
    ] = False,
    val: Annotated[str, typer.Option(metavar="PATTERN", help="Shards of val, by their path in SRC.")] = "*val*",
    test: Annotated[str, typer.Option(metavar="PATTERN", help="Shards of test; all others are train.")] = "*test*",
    max_bad_fraction: MaxBadFraction = 0.01,
    processes: Processes = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Index WebDataset shards that somebody else wrote: index files and manifest are put beside them.

    The shards are read once and stay as they are. Shards with pickles in them are refused.

    Example: hush data build webdataset ~/imagenet-wds --classes @names.txt --val "*validation*"
    """
    from data_pipeline.building.index_shards import IndexOptions, index_shards  # noqa: PLC0415 -- Arrow
    from data_pipeline.sources.webdataset import LabelPlace, LabelRules  # noqa: PLC0415 -- Arrow

    with one_line_errors("stopped; the same command begins anew"):
        folder = local_source(src)
        if are_clean and clean_label is not None:
            raise ValueError(f"--clean-label {clean_label!r} and --are-clean exclude each other")
        clean = None if clean_label is None else LabelPlace.parse(clean_label)
        options = IndexOptions(
            name=name or folder.absolute().name,
            labels=LabelRules(LabelPlace.parse(label), clean, class_names(classes)),
            val=val,
            test=test,
            are_clean=are_clean,
            max_bad_fraction=max_bad_fraction,
            num_processes=processes,
            force=force,
        )
        with _byte_bar(as_json=as_json) as on_bytes:
            result = index_shards(folder, options, on_bytes)
    print_summary(result.manifest, tuple(_notes(result)), as_json=as_json)


@contextmanager
def _byte_bar(*, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """What is to be told of (bytes done, bytes in all), and shows it on a terminal."""
    from rich.console import Console  # noqa: PLC0415 -- when needed
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415 -- same

    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=as_json or not sys.stderr.isatty(),
    )  # fmt: skip
    with bars:
        bar = bars.add_task("reading", total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _options(
    corruption: str | None,
    seed: int,
    shard_size: int,
    processes: int | None,
    *,
    force: bool,
    max_bad_fraction: float = 0.01,
) -> BuildOptions:
    from data_pipeline.building.build import BuildOptions  # noqa: PLC0415 -- OpenCV and Arrow

    return BuildOptions(
        seed=seed,
        shard_size=shard_size,
        corruption=None if corruption is None else parse_corruption(corruption, seed),
        max_bad_fraction=max_bad_fraction,
        force=force,
        num_processes=processes,
    )


def _build(
    open_source: Callable[[], AbstractContextManager[Source]],
    out: str,
    options: BuildOptions,
    *,
    as_json: bool,
    keeps_labels: str = "",
) -> None:
    """`keeps_labels`: how to have labels kept that the source does not call clean."""
    from rich.console import Console  # noqa: PLC0415 -- when needed
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn  # noqa: PLC0415 -- same
    from rich.progress import Progress as Bars  # noqa: PLC0415 -- when needed

    from data_pipeline.building.build import Progress, build  # noqa: PLC0415 -- OpenCV and Arrow

    bars = Bars(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=as_json or not sys.stderr.isatty(),
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}

    def show_progress(progress: Progress) -> None:
        if not tasks:
            bars.remove_task(listing)
        if progress.split not in tasks:
            tasks[progress.split] = bars.add_task(progress.split, total=progress.num_total)
        bars.update(tasks[progress.split], completed=progress.num_done)

    with bars:
        listing = bars.add_task("listing", total=None)  # of a million examples: ten seconds and more
        with open_source() as source:
            result = build(source, out, options, show_progress)
    print_summary(result.manifest, (*source.notes, *_notes(result, keeps_labels)), as_json=as_json)


def _notes(result: BuildResult, keeps_labels: str = "") -> Iterator[str]:
    """What a person should know of how it went, a line each."""
    manifest, train = result.manifest, result.manifest.splits["train"]
    corruption = manifest.recipe.corruption
    if corruption is not None:
        told = ", ".join(f"{name} {level}" for name, level in corruption.model_dump(exclude={"kind"}).items())
        assert result.share_changed is not None
        yield f"noise injected into train: {corruption.kind}, {told}: {result.share_changed:.1%} of its labels changed"
        if unknown := train.num_examples - train.num_clean_labels:
            yield (
                f"warning: {unknown:,} of {train.num_examples:,} training examples have no clean label: what their"
                f" label was before the noise is not kept{keeps_labels}"
            )
    if result.num_kept:
        yield f"went on with a build that was stopped: {result.num_kept:,} of its shards were taken over"
    if not result.is_new:
        yield "this very data set stood there already: nothing was changed"
