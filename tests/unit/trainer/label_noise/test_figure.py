"""The picture of an epoch: its size, its colours, and that one frame fits all epochs."""

import numpy as np
import torch
from PIL import ImageColor

from trainer.label_noise.figure import SIZE_PX, draw
from trainer.label_noise.histogram import ClassHistogram, noise_record

LINEARISED, EXACT, TRAINING = "#0072b2", "#d55e00", "#009e73"


def record_with(scale, estimators=("exact", "linearised")):
    histograms = {}
    values_B = scale * torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for estimator in estimators:
        histograms[estimator] = ClassHistogram(2)
        scaled_B = values_B * (10 if estimator == "linearised" else 1)
        histograms[estimator].add(scaled_B, torch.arange(200) % 2, torch.ones(200, dtype=torch.bool))
    return noise_record(histograms, epoch=3, step=30, classes=("cat", "dog"), num_examples=200)


def columns_of(image, colour):
    """x of the pixels of a series' outline, above the axis and below the legend."""
    return np.flatnonzero((np.asarray(image)[85:445] == ImageColor.getrgb(colour)).all(2).any(0))


def test_picture_has_its_size_and_both_series():
    both, one = draw(record_with(1e-3)), draw(record_with(1e-3, estimators=("exact",)))
    assert both.size == one.size == SIZE_PX
    assert both.mode == "RGB"
    assert len(columns_of(both, LINEARISED))
    assert len(columns_of(one, EXACT))
    assert not len(columns_of(one, LINEARISED))
    assert not len(columns_of(both, TRAINING))
    assert len(columns_of(draw(record_with(1e-3, estimators=("exact", "linearised", "training"))), TRAINING))


def test_more_noise_stands_further_right_in_the_same_frame():
    quiet, loud = (columns_of(draw(record_with(scale, ("exact",))), EXACT) for scale in (1e-6, 1e-1))
    assert quiet.max() < loud.min()


def test_equal_records_give_equal_pictures():
    assert draw(record_with(1e-2)).tobytes() == draw(record_with(1e-2)).tobytes()


def test_a_method_without_a_posterior_gets_a_picture_that_says_so():
    assert draw(record_with(1e-2, estimators=())).size == SIZE_PX
