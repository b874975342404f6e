"""Examples that a raw data set lists and that cannot be used: how many of them are too many. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.manifest import SkippedExample
from data_pipeline.spec import num_tolerated

NUM_NAMED = 5


def check_bad(split: str, bad: Sequence[SkippedExample], num_listed: int, max_bad_fraction: float) -> None:
    """ValueError, which names the first of them, if more of a split's listed examples are bad than is tolerated."""
    limit = num_tolerated(max_bad_fraction, num_listed)
    if len(bad) > limit:
        first = "; ".join(f"{example.example_id}: {example.reason}" for example in bad[:NUM_NAMED])
        raise ValueError(
            f"{len(bad):,} of {num_listed:,} examples of split {split!r} cannot be used; max_bad_fraction"
            f" {max_bad_fraction:g} tolerates {limit:,}. The first: {first}"
        )
