"""Examples that a raw data set lists and that cannot be used: how many of them are too many. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_pipeline.manifest import SkippedExample
from data_pipeline.sources.base import SourceExample
from data_pipeline.spec import num_tolerated

NUM_NAMED = 5


def skipped(example: SourceExample, ordinal: int, label: int | None, reason: str) -> SkippedExample:
    """The example's entry in the manifest; where its picture is a file, the reason begins with the path."""
    return SkippedExample(
        example_id=example.example_id,
        split=example.split,
        ordinal=ordinal,
        label=label,
        reason=reason if example.file is None else f"{example.file}: {reason}",
    )


def check_bad(split: str, bad: Sequence[SkippedExample], num_listed: int, max_bad_fraction: float) -> None:
    """ValueError, which names the first of each reason, if more of a split's listed examples are bad than tolerated."""
    limit = num_tolerated(max_bad_fraction, num_listed)
    if len(bad) > limit:
        enough = math.ceil(100 * len(bad) / num_listed) / 100
        way_out = f": mend them, or leave them out with --max-bad-fraction {enough:g}" if len(bad) < num_listed else ""
        raise ValueError(
            f"{len(bad):,} of {num_listed:,} examples of split {split!r} cannot be used; max_bad_fraction"
            f" {max_bad_fraction:g} tolerates {limit:,}{way_out}. The first: {_first(bad)}"
        )


def _first(bad: Sequence[SkippedExample]) -> str:
    """One example of each reason, as many as are named."""
    alike: dict[str, list[SkippedExample]] = {}
    for example in bad:
        place, _, why = example.reason.partition(": ")
        alike.setdefault(why or place, []).append(example)
    return "; ".join(
        f"{of_reason[0].example_id}: {of_reason[0].reason}"
        + (f" ({len(of_reason) - 1:,} more alike)" if len(of_reason) > 1 else "")
        for of_reason in list(alike.values())[:NUM_NAMED]
    )
