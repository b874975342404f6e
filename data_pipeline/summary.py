"""What a split holds, in numbers: labels, where given and clean ones differ, sizes of the pictures. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.examples import UNKNOWN_LABEL, ExampleTable


@dataclass(frozen=True)
class Spread:
    """The smallest, the middle and the largest of some numbers."""

    smallest: int
    median: float
    largest: int


@dataclass(frozen=True)
class LabelPair:
    """How often examples of a clean label bear a given one."""

    clean_label: int
    given_label: int
    count: int


@dataclass(frozen=True)
class SplitSummary:
    """One split of a data set."""

    confusion: tuple[LabelPair, ...]
    """Of the examples whose clean label is known: each pair that occurs, by clean label, then given label."""
    width: Spread
    """Pixels."""
    height: Spread
    """Pixels."""
    length_bytes: Spread
    """Of the image file."""

    @property
    def num_wrong(self) -> int:
        """Examples whose clean label is known and is not the given one."""
        return sum(pair.count for pair in self.wrong())

    def wrong(self) -> list[LabelPair]:
        """Pairs of different labels, the most frequent first."""
        pairs = [pair for pair in self.confusion if pair.clean_label != pair.given_label]
        return sorted(pairs, key=lambda pair: -pair.count)

    def matrix(self, num_classes: int) -> NDArray[np.int64]:
        """The confusion as counts_KK: clean labels in rows, given labels in columns."""
        counts_KK = np.zeros((num_classes, num_classes), dtype=np.int64)
        for pair in self.confusion:
            counts_KK[pair.clean_label, pair.given_label] = pair.count
        return counts_KK


def summarise(table: ExampleTable) -> SplitSummary:
    """Count."""
    known_N = table.clean_labels != UNKNOWN_LABEL
    codes_M = table.clean_labels[known_N].astype(np.int64) * table.num_classes + table.given_labels[known_N]
    codes, counts = np.unique(codes_M, return_counts=True)
    return SplitSummary(
        confusion=tuple(
            LabelPair(code // table.num_classes, code % table.num_classes, count)
            for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
        ),
        width=_spread(table.widths),
        height=_spread(table.heights),
        length_bytes=_spread(table.lengths),
    )


def _spread(numbers_N: NDArray[np.int32]) -> Spread:
    return Spread(int(numbers_N.min()), float(np.median(numbers_N)), int(numbers_N.max()))
