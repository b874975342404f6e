"""What a build is asked for: all examples that a source lists, what speaks against some of them, the labels they will
be given, and in which shard each will lie. Nothing here reads a picture.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from data_pipeline import plan
from data_pipeline.building.bad_examples import skipped
from data_pipeline.examples import UNKNOWN_LABEL
from data_pipeline.label_corruption import corrupt, transition_matrix
from data_pipeline.manifest import Recipe, SkippedExample, check_names
from data_pipeline.sources.base import SPLITS, Source, SourceExample, SplitName
from data_pipeline.spec import Corruption

_EXAMPLE_ID = re.compile(r"[A-Za-z0-9_,=+@-]{1,80}")


@dataclasses.dataclass(frozen=True, slots=True)
class ListedExample:
    """An example with its place in data-set order and the label that it is given, injected noise and all."""

    example: SourceExample
    ordinal: int
    given_label: int
    bad: SkippedExample | None
    """Why it cannot be used, whatever its picture is like; None: nothing stands against it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The examples that one shard is to hold, in its order."""

    name: str
    split: SplitName
    listed: tuple[ListedExample, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
    """All examples by split in data-set order, N a split."""

    recipe: Recipe
    examples: dict[SplitName, list[SourceExample]]
    """Labels as the source has them."""
    given_labels_N: dict[SplitName, NDArray[np.int64]]
    """With injected noise; -1 where the source has no label that can be one."""
    bad: dict[SplitName, dict[int, SkippedExample]]
    """By ordinal, what cannot be used, whatever its picture is like."""
    share_changed: float | None
    """Of the training labels, by injected noise; None: none was asked for."""

    def num_parts(self, split: SplitName) -> int:
        """Shards that the split is cut into."""
        return -(-len(self.examples[split]) // self.recipe.shard_size)

    def part_name(self, split: SplitName, number: int) -> str:
        """`train-000003`: the shard's file name without suffix."""
        return f"{split}-{number:06d}"

    def parts(self) -> Iterator[Part]:
        """The splits one after the other, each in a random order that its name and the recipe's seed decide."""
        recipe = self.recipe
        for split, examples in self.examples.items():
            order_N = plan.permutation(f"{recipe.source}/{split}", recipe.seed, 0, len(examples))
            for number in range(self.num_parts(split)):
                places = order_N[number * recipe.shard_size : (number + 1) * recipe.shard_size].tolist()
                labels = self.given_labels_N[split][places].tolist()
                bad = self.bad[split]
                listed = tuple(
                    ListedExample(examples[place], place, label, bad.get(place))
                    for place, label in zip(places, labels, strict=True)
                )
                yield Part(self.part_name(split, number), split, listed)


def list_examples(source: Source, *, seed: int, shard_size: int, corruption: Corruption | None) -> Listing:
    """Ask the source for its examples. ValueError for a name or an id that cannot be, or no example to train on."""
    check_names(source.name, source.classes)
    by_split: dict[SplitName, list[SourceExample]] = {split: [] for split in SPLITS}
    bad: dict[SplitName, dict[int, SkippedExample]] = {split: {} for split in SPLITS}
    listing = hashlib.sha256(repr(source.classes).encode())
    seen: set[str] = set()
    num_classes = len(source.classes)
    for example in source.examples():
        if not _EXAMPLE_ID.fullmatch(example.example_id):
            raise ValueError(f"example_id {example.example_id!r} must be 1 to 80 letters, digits or -_,+=@")
        listing.update(repr((example.example_id, example.split, example.given_label, example.clean_label)).encode())
        ordinal = len(by_split[example.split])
        if reason := _problem(example, seen, num_classes):
            label = example.given_label if _is_label(example.given_label, num_classes) else None
            bad[example.split][ordinal] = skipped(example, ordinal, label, reason)
        seen.add(example.example_id)
        by_split[example.split].append(example)
    if not by_split["train"]:
        raise ValueError(f"{source.name!r} lists no example to train on")
    recipe = Recipe(
        source=source.name,
        listing_sha256=listing.hexdigest(),
        seed=seed,
        shard_size=shard_size,
        corruption=corruption,
        transition_matrix=None if corruption is None else _matrix(corruption, num_classes),
    )
    given_labels_N = {split: _labels(examples, num_classes) for split, examples in by_split.items()}
    share_changed = None
    if corruption is not None:
        before_N = given_labels_N["train"]
        after_N = given_labels_N["train"] = corrupt(before_N, num_classes, corruption)
        share_changed = int((after_N != before_N).sum()) / max(1, int((before_N >= 0).sum()))
    return Listing(recipe, by_split, given_labels_N, bad, share_changed)


def _problem(example: SourceExample, seen: Collection[str], num_classes: int) -> str | None:
    """Why the example cannot be used, whatever its picture is like."""
    if example.example_id in seen:
        return "its id is that of another example"
    if example.given_label is None:
        return "has no label"
    for label in (example.given_label, example.clean_label):
        if label is not None and not _is_label(label, num_classes):
            return f"label {label} must be 0 to {num_classes - 1}"
    return None


def _is_label(label: int | None, num_classes: int) -> TypeGuard[int]:
    return label is not None and 0 <= label < num_classes


def _matrix(corruption: Corruption, num_classes: int) -> tuple[tuple[float, ...], ...]:
    """As the manifest stores it."""
    return tuple(tuple(row) for row in transition_matrix(corruption, num_classes).tolist())


def _labels(examples: Sequence[SourceExample], num_classes: int) -> NDArray[np.int64]:
    """(N,), -1 where there is none that can be one."""
    given = (example.given_label for example in examples)
    labels = (label if _is_label(label, num_classes) else UNKNOWN_LABEL for label in given)
    return np.fromiter(labels, dtype=np.int64, count=len(examples))
