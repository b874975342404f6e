"""What a build is asked for: all examples that a source lists, checked, the labels they will be given, and in which
shard each will lie. Nothing here reads a picture.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline import plan
from data_pipeline.label_corruption import corrupt, transition_matrix
from data_pipeline.manifest import Recipe
from data_pipeline.sources.base import SPLITS, Source, SourceExample, SplitName
from data_pipeline.spec import Corruption

_EXAMPLE_ID = re.compile(r"[A-Za-z0-9_,=+@-]{1,80}")


@dataclasses.dataclass(frozen=True, slots=True)
class ListedExample:
    """An example with its place in data-set order and the label that it is given, injected noise and all."""

    example: SourceExample
    ordinal: int
    given_label: int


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
    """With injected noise."""

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
                listed = tuple(
                    ListedExample(examples[place], place, label) for place, label in zip(places, labels, strict=True)
                )
                yield Part(self.part_name(split, number), split, listed)


def list_examples(source: Source, *, seed: int, shard_size: int, corruption: Corruption | None) -> Listing:
    """Ask the source for its examples. ValueError for an id or a label that cannot be, or an id given twice."""
    by_split: dict[SplitName, list[SourceExample]] = {split: [] for split in SPLITS}
    listing = hashlib.sha256(repr(source.classes).encode())
    seen: set[str] = set()
    num_classes = len(source.classes)
    for example in source.examples():
        if not _EXAMPLE_ID.fullmatch(example.example_id):
            raise ValueError(f"example_id {example.example_id!r} must be 1 to 80 letters, digits or -_,+=@")
        if example.example_id in seen:
            raise ValueError(f"example_id {example.example_id!r} stands for more than one example of {source.name!r}")
        for label in (example.given_label, example.clean_label):
            if label is not None and not 0 <= label < num_classes:
                raise ValueError(f"{example.example_id}: label {label} must be 0 to {num_classes - 1}")
        seen.add(example.example_id)
        by_split[example.split].append(example)
        listing.update(repr((example.example_id, example.split, example.given_label, example.clean_label)).encode())
    recipe = Recipe(
        source=source.name,
        listing_sha256=listing.hexdigest(),
        seed=seed,
        shard_size=shard_size,
        corruption=corruption,
        transition_matrix=None if corruption is None else _matrix(corruption, num_classes),
    )
    given_labels_N = {
        split: _with_noise(examples, num_classes, corruption if split == "train" else None)
        for split, examples in by_split.items()
    }
    return Listing(recipe, by_split, given_labels_N)


def _matrix(corruption: Corruption, num_classes: int) -> tuple[tuple[float, ...], ...]:
    """As the manifest stores it."""
    return tuple(tuple(row) for row in transition_matrix(corruption, num_classes).tolist())


def _with_noise(
    examples: Sequence[SourceExample], num_classes: int, corruption: Corruption | None
) -> NDArray[np.int64]:
    labels_N = np.array([example.given_label for example in examples], dtype=np.int64)
    return labels_N if corruption is None else corrupt(labels_N, num_classes, corruption)
