"""Which ranges are asked for together, and which shards are fetched ahead, for any rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.reading.lookahead import Lookahead
from data_pipeline.storage.remote import joined

RANGES = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100)), max_size=30)


@given(RANGES, st.integers(0, 50))
def test_requests_cover_all_ranges_and_no_wide_gap(ranges: list[tuple[int, int]], gap: int) -> None:
    spans = joined(ranges, gap)
    wanted = {byte for offset, length in ranges for byte in range(offset, offset + length)}
    asked = [byte for start, end in spans for byte in range(start, end)]
    assert wanted <= set(asked)
    assert asked == sorted(set(asked))
    for start, end in spans:
        assert {start, end - 1} <= wanted
        within = sorted(byte for byte in wanted if start <= byte < end)
        assert all(after - before <= gap + 1 for before, after in pairwise(within))
    for (_, end), (start, _) in pairwise(spans):
        assert start - end > gap


@given(st.lists(st.integers(0, 8), min_size=1, max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_looks_ahead_at_what_comes_next_first(shards: list[int], start: int, length: int) -> None:
    ahead = Lookahead(np.array(shards, dtype=np.int32)).shards(start, start + length)
    soon = shards[start : start + length]
    assert set(soon) <= set(ahead)
    assert ahead == sorted(ahead, key=shards.index)
    for shard in ahead:  # used before and after the rows, or within them
        assert shard in soon or (shard in shards[:start] and shard in shards[start + length :])
