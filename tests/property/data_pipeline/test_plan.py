"""The order of examples, and crops: properties over sizes, seeds, epochs and ranks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import crop, plan

SIZES = st.integers(1, 300)
SEEDS = st.integers(0, 2**32 - 1)


@given(SIZES, SEEDS, st.integers(0, 1000), st.integers(1, 8), st.integers(1, 9))
def test_each_example_is_seen_once_an_epoch_and_the_order_is_that_of_one_rank(size, seed, epoch, world_size, per_rank):
    batch_size = world_size * per_rank
    order = plan.permutation("digest", seed, epoch, size)
    steps = plan.num_steps(size, batch_size)
    seen = []
    for step in range(steps):
        shares = [
            plan.rank_rows(order, step, batch_size=batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        counts = [int((share != plan.PADDING).sum()) for share in shares]
        assert {len(share) for share in shares} == {per_rank}
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == plan.num_valid(size, batch_size, step) > 0
        rows = np.stack(shares, axis=1).flatten()
        assert (rows[sum(counts) :] == plan.PADDING).all()
        seen += rows[: sum(counts)].tolist()
    assert seen == order.tolist()
    assert sorted(seen) == list(range(size))
    assert plan.num_valid(size, batch_size, steps) == 0


@given(SIZES, SEEDS, st.integers(0, 1000))
def test_the_order_is_a_pure_function_of_its_arguments(size, seed, epoch):
    order = plan.permutation("digest", seed, epoch, size)
    np.testing.assert_array_equal(order, plan.permutation("digest", seed, epoch, size))
    if size > 20:
        others = [("other", seed, epoch), ("digest", seed + 1, epoch), ("digest", seed, epoch + 1)]
        assert all((order != plan.permutation(*other, size)).any() for other in others)


def test_the_order_stays_the_same_for_ever():
    """A resumed job must see the order it began with, whatever NumPy it runs on."""
    assert plan.permutation("digest", 0, 1, 10).tolist() == GOLDEN_ORDER


def test_every_place_is_equally_likely_for_every_example():
    places = np.stack([plan.permutation("digest", 0, epoch, 8) for epoch in range(4000)])
    counts = np.stack([np.bincount(places[:, place], minlength=8) for place in range(8)])
    chi_squared = float(((counts - 500) ** 2 / 500).sum())
    assert chi_squared < 49 + 5 * (2 * 49) ** 0.5


@given(st.integers(1, 5000), st.integers(1, 5000), SEEDS, st.integers(0, 100))
def test_crops_lie_inside_the_picture(height, width, seed, epoch):
    draws = crop.draws_for(seed, epoch, "example")
    assert ((draws >= 0) & (draws < 1)).all()
    for box in (crop.random_box(draws, height, width), crop.centre_box(height, width, 224)):
        assert box.height >= 1
        assert box.width >= 1
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width


def test_crops_have_the_areas_and_ratios_they_should():
    boxes = [crop.random_box(crop.draws_for(0, epoch, "example"), 1000, 1000) for epoch in range(2000)]
    areas = np.array([box.height * box.width for box in boxes]) / 1e6
    ratios = np.array([box.width / box.height for box in boxes])
    assert 0.079 < areas.min() < areas.max() <= 1
    assert 0.74 < ratios.min() < ratios.max() < 1.34
    assert abs(np.log(ratios).mean()) < 0.02
    assert 0.45 < np.mean([crop.is_flipped(crop.draws_for(0, epoch, "example")) for epoch in range(2000)]) < 0.55


GOLDEN_ORDER = [1, 2, 6, 9, 5, 8, 3, 4, 7, 0]
