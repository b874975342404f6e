"""Crops: properties over sizes, seeds and epochs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.pictures import crop

SEEDS = st.integers(0, 2**32 - 1)


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
