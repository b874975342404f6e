"""The order of examples: properties over sizes, shards, classes, seeds, epochs and ranks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import plan
from data_pipeline.spec import DataSpec

SIZES = st.integers(1, 300)
SEEDS = st.integers(0, 2**32 - 1)
EPOCHS = st.integers(0, 1000)


def spec(**changes) -> DataSpec:
    return DataSpec(manifest="manifest.json", **changes)


@st.composite
def tables(draw) -> plan.Rows:
    """Shards of any size, empty ones too, not necessarily one after the other; some classes may not occur."""
    counts = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any))
    shards = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    if draw(st.booleans()):
        shards = np.random.default_rng(0).permutation(shards)
    labels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, draw(st.integers(1, 6)), len(shards)) * 2
    return plan.Rows("digest", len(counts), shards, labels.astype(np.int32))


def regular(num_shards: int, shard_size: int) -> plan.Rows:
    """Shards of one size, each of one class."""
    shards = np.repeat(np.arange(num_shards, dtype=np.int32), shard_size)
    return plan.Rows("digest", num_shards, shards, shards % 5)


SPECS = st.builds(
    spec,
    order=st.sampled_from(["global", "windowed"]),
    window_shards=st.integers(1, 20),
    class_balanced=st.booleans(),
)


@given(tables(), SPECS, SEEDS, EPOCHS)
def test_each_row_is_in_the_order_at_most_once_and_unbalanced_exactly_once(rows, data_spec, seed, epoch):
    order = plan.epoch_order(rows, data_spec, seed, epoch)
    assert order.dtype == np.int64
    assert len(set(order.tolist())) == len(order) == plan.epoch_size(rows, data_spec)
    if data_spec.class_balanced:
        assert set(order.tolist()) <= set(range(len(rows.shards_N)))
    else:
        assert sorted(order.tolist()) == list(range(len(rows.shards_N)))


@given(tables(), SPECS, st.integers(1, 8), st.integers(1, 9), st.data())
def test_the_ranks_steps_are_the_order_from_wherever_they_start(rows, data_spec, world_size, per_rank, data):
    order = plan.epoch_order(rows, data_spec, 0, 1)
    batch_size = world_size * per_rank
    start = data.draw(st.integers(0, len(order)))
    seen = []
    for step in range(plan.num_steps(len(order) - start, batch_size, "pad")):
        begin = start + step * batch_size
        shares = [
            plan.rank_rows(order, begin, batch_size=batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        counts = [int((share != plan.PADDING).sum()) for share in shares]
        assert {len(share) for share in shares} == {per_rank}
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == min(batch_size, len(order) - begin) > 0
        merged = np.stack(shares, axis=1).flatten()
        assert (merged[sum(counts) :] == plan.PADDING).all()
        seen += merged[: sum(counts)].tolist()
    assert seen == order[start:].tolist()


@given(st.integers(0, 1000), st.integers(1, 64))
def test_what_is_left_over_is_padded_or_dropped(num_examples, batch_size):
    whole, rest = divmod(num_examples, batch_size)
    assert plan.num_steps(num_examples, batch_size, "drop") == whole
    assert plan.num_steps(num_examples, batch_size, "pad") == whole + (rest > 0)


@given(tables(), SPECS, SEEDS, EPOCHS)
def test_the_order_is_a_pure_function_of_its_arguments(rows, data_spec, seed, epoch):
    order = plan.epoch_order(rows, data_spec, seed, epoch)
    np.testing.assert_array_equal(order, plan.epoch_order(rows, data_spec, seed, epoch))


@pytest.mark.parametrize("class_balanced", [False, True])
@pytest.mark.parametrize("order", ["global", "windowed"])
def test_other_data_seeds_and_epochs_have_other_orders(order, class_balanced):
    rows, data_spec = regular(8, 25), spec(order=order, class_balanced=class_balanced, window_shards=4)
    first = plan.epoch_order(rows, data_spec, 0, 1)
    for other in ((rows._replace(name="other"), 0, 1), (rows, 1, 1), (rows, 0, 2)):
        assert (first != plan.epoch_order(other[0], data_spec, *other[1:])).any()


def streams_of(data_spec: DataSpec, num_shards: int) -> int:
    most = min(64, data_spec.window_shards, num_shards)
    return max(power for power in (1, 2, 4, 8, 16, 32, 64) if power <= most)


@given(tables(), st.integers(1, 20), st.booleans(), SEEDS, EPOCHS)
def test_a_window_never_reads_more_shards_than_it_may(rows, window_shards, class_balanced, seed, epoch):
    data_spec = spec(order="windowed", window_shards=window_shards, class_balanced=class_balanced)
    shards = rows.shards_N[plan.epoch_order(rows, data_spec, seed, epoch)]
    num_streams = streams_of(data_spec, rows.num_shards)
    most = 0
    for stream in range(num_streams):
        ours = shards[stream::num_streams].tolist()
        spans = [(ours.index(shard), len(ours) - 1 - ours[::-1].index(shard)) for shard in set(ours)]
        most += max((sum(first <= place <= last for first, last in spans) for place in range(len(ours))), default=0)
    assert most <= window_shards


def test_a_rank_reads_the_same_shards_every_epoch_and_few_that_others_read():
    rows, data_spec = regular(100, 30), spec(order="windowed", window_shards=16)
    for world_size in (2, 8, 16):
        by_epoch = []
        for epoch in (1, 2):
            order = plan.epoch_order(rows, data_spec, 0, epoch)
            shares = [set(rows.shards_N[order[rank::world_size]].tolist()) for rank in range(world_size)]
            assert set.union(*shares) == set(range(100))
            assert sum(map(len, shares)) <= 100 + 16  # a cut shard is read by two
            by_epoch.append(shares)
        assert by_epoch[0] == by_epoch[1]


def test_a_windowed_order_changes_which_shards_meet_and_how_their_examples_are_mixed():
    rows, data_spec = regular(64, 20), spec(order="windowed", window_shards=8)
    first, second = (plan.epoch_order(rows, data_spec, 0, epoch) for epoch in (1, 2))
    for order in (first, second):
        batches = [set(rows.shards_N[order[start : start + 8]].tolist()) for start in range(0, len(order), 8)]
        assert {len(shards) for shards in batches} == {8}  # one example of each stream
    early = [set(rows.shards_N[order[:160]].tolist()) for order in (first, second)]
    assert early[0] != early[1]
    shard = int(rows.shards_N[first[0]])
    within = [[row for row in order.tolist() if rows.shards_N[row] == shard] for order in (first, second)]
    assert sorted(within[0]) == sorted(within[1])
    assert within[0] != within[1]


def test_a_block_mixes_its_shards():
    def changes(rows: plan.Rows, window_shards: int, num_streams: int) -> tuple[int, int]:
        order = plan.epoch_order(rows, spec(order="windowed", window_shards=window_shards), 0, 1)
        shards = rows.shards_N[order[::num_streams]].tolist()
        return sum(one != other for one, other in pairwise(shards)), len(set(shards))

    assert changes(regular(4, 250), 1, 1) == (3, 4)  # one shard after the other
    assert changes(regular(4, 250), 7, 4) == (0, 1)  # four streams of a shard each
    num_changes, num_shards = changes(regular(64, 50), 128, 64)
    assert (num_changes, num_shards) == (0, 1)
    num_changes, num_shards = changes(regular(260, 50), 256, 64)  # 203 examples of some 5 shards, in blocks of 4
    assert num_shards >= 5
    assert num_changes > 100


@given(tables(), st.sampled_from(["global", "windowed"]), SEEDS, EPOCHS)
def test_a_balanced_epoch_holds_as_many_of_each_class_as_the_rarest_has(rows, order, seed, epoch):
    chosen = plan.epoch_order(rows, spec(order=order, class_balanced=True, window_shards=3), seed, epoch)
    available, used = np.bincount(rows.labels_N), np.bincount(rows.labels_N[chosen])
    rarest = available[available > 0].min()
    assert {int(count) for count in used[available[: len(used)] > 0]} == {int(rarest)}
    assert np.count_nonzero(used) == np.count_nonzero(available)


def test_a_balanced_epoch_draws_every_example_of_a_class_as_often():
    labels = np.repeat(np.arange(2, dtype=np.int32), (4, 12))
    rows = plan.Rows("digest", 1, np.zeros(16, dtype=np.int32), labels)
    drawn = np.zeros(16)
    for epoch in range(3000):
        drawn[plan.balanced_rows(rows, 0, epoch)] += 1
    assert (drawn[:4] == 3000).all()
    np.testing.assert_allclose(drawn[4:], 1000, atol=5 * (3000 * 1 / 3 * 2 / 3) ** 0.5)


def test_the_orders_stay_the_same_for_ever():
    """A resumed job must see the order it began with, whatever NumPy it runs on."""
    rows = regular(5, 4)
    assert plan.permutation("digest", 0, 1, 10).tolist() == GOLDEN_ORDER
    assert plan.epoch_order(rows, spec(order="windowed", window_shards=4), 0, 1).tolist() == GOLDEN_WINDOWED
    uneven = rows._replace(labels_N=np.arange(20, dtype=np.int32) // 12)
    assert plan.balanced_rows(uneven, 0, 1).tolist() == GOLDEN_BALANCED


def test_every_place_is_equally_likely_for_every_example():
    places = np.stack([plan.permutation("digest", 0, epoch, 8) for epoch in range(4000)])
    counts = np.stack([np.bincount(places[:, place], minlength=8) for place in range(8)])
    chi_squared = float(((counts - 500) ** 2 / 500).sum())
    assert chi_squared < 49 + 5 * (2 * 49) ** 0.5


GOLDEN_ORDER = [1, 2, 6, 9, 5, 8, 3, 4, 7, 0]
GOLDEN_WINDOWED = [19, 5, 9, 11, 16, 7, 8, 3, 17, 6, 10, 2, 18, 12, 15, 0, 4, 13, 14, 1]
GOLDEN_BALANCED = [1, 3, 4, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
