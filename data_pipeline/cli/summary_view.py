"""What `hush data show` prints of a data set's splits, beside what its manifest says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_pipeline.manifest import Manifest
from data_pipeline.summary import SplitSummary, Spread

MOST_MATRIX_CLASSES = 16
"""With more classes the matrix is wider than a terminal, and the most frequent confusions are listed."""
NUM_CONFUSIONS = 10


def as_json(summaries: Mapping[str, SplitSummary]) -> dict[str, dict[str, object]]:
    """By split."""
    return {name: {"num_wrong": each.num_wrong, **dataclasses.asdict(each)} for name, each in summaries.items()}


def print_splits(console: Console, manifest: Manifest, summaries: Mapping[str, SplitSummary]) -> None:
    """Tables of classes, of picture sizes, and of given labels against clean ones."""
    console.print(_classes(manifest))
    console.print(_sizes(summaries))
    if manifest.recipe.corruption is not None:
        injected = manifest.recipe.corruption.model_dump()
        told = ", ".join(f"{name} {value}" for name, value in injected.items())
        console.print(f"noise injected into train: {told}", markup=False)
    for name, summary in summaries.items():
        known = manifest.splits[name].num_clean_labels
        if not known:
            console.print(f"{name}: no clean label is known", markup=False)
            continue
        share = f"{summary.num_wrong:,} of {known:,} known clean labels differ from the given one"
        console.print(f"{name}: {share} ({summary.num_wrong / known:.1%})", markup=False)
        if summary.num_wrong:
            few = len(manifest.classes) <= MOST_MATRIX_CLASSES
            console.print((_matrix if few else _confusions)(manifest.classes, summary))


def _classes(manifest: Manifest) -> Table:
    table = Table("label", "class", title="examples by given label")
    for name in manifest.splits:
        table.add_column(escape(name), justify="right")
    for label, class_name in enumerate(manifest.classes):
        counts = (f"{split.class_counts[label]:,}" for split in manifest.splits.values())
        table.add_row(str(label), escape(class_name), *counts)
    return table


def _sizes(summaries: Mapping[str, SplitSummary]) -> Table:
    table = Table("split", "width", "height", "file, bytes", title="pictures: smallest, median, largest")
    for name, summary in summaries.items():
        table.add_row(escape(name), *map(_range, (summary.width, summary.height, summary.length_bytes)))
    return table


def _range(spread: Spread) -> str:
    return f"{spread.smallest:,} – {spread.median:,.0f} – {spread.largest:,}"


def _matrix(classes: tuple[str, ...], summary: SplitSummary) -> Table:
    """Shares of each clean class."""
    table = Table("clean \\ given, %", box=None, padding=(0, 1))
    for label in range(len(classes)):
        table.add_column(str(label), justify="right")
    for label, (class_name, counts_K) in enumerate(zip(classes, summary.matrix(len(classes)).tolist(), strict=True)):
        total = max(1, sum(counts_K))
        table.add_row(
            escape(f"{label} {class_name}"), *(f"{100 * count / total:.0f}" if count else "·" for count in counts_K)
        )
    return table


def _confusions(classes: tuple[str, ...], summary: SplitSummary) -> Table:
    table = Table("clean", "given", box=None)
    table.add_column("the most frequent", justify="right")
    for pair in summary.wrong()[:NUM_CONFUSIONS]:
        table.add_row(escape(classes[pair.clean_label]), escape(classes[pair.given_label]), f"{pair.count:,}")
    return table
