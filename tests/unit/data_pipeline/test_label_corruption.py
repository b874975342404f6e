"""Injected noise against a second, independent writing of the same definition."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.label_corruption import corrupt, transition_matrix
from data_pipeline.spec import PairflipCorruption, SymmetricCorruption

CORRUPTIONS = [SymmetricCorruption(rate=0.4, seed=0), PairflipCorruption(rate=0.45, seed=7)]


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.kind)
@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_matrix_is_the_definition(corruption, num_classes):
    matrix = transition_matrix(corruption, num_classes)
    expected = np.zeros((num_classes, num_classes))
    for true in range(num_classes):
        for given in range(num_classes):
            if true == given:
                expected[true, given] = 1 - corruption.rate
            elif corruption.kind == "symmetric":
                expected[true, given] = corruption.rate / (num_classes - 1)
            elif given == (true + 1) % num_classes:
                expected[true, given] = corruption.rate
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.kind)
def test_labels_are_one_multinomial_draw_each_in_data_set_order(corruption):
    labels = np.random.default_rng(0).integers(0, 10, 500)
    matrix = transition_matrix(corruption, 10)
    flipper = np.random.RandomState(corruption.seed)
    expected = labels.copy()
    for position in range(len(labels)):
        expected[position] = np.where(flipper.multinomial(1, matrix[labels[position], :], 1)[0] == 1)[0][0]
    np.testing.assert_array_equal(corrupt(labels, 10, corruption), expected)


def test_golden_labels():
    """NumPy freezes RandomState's streams: these labels stay the same for ever."""
    labels = np.arange(20) % 10
    assert corrupt(labels, 10, SymmetricCorruption(rate=0.5)).tolist() == GOLDEN_SYMMETRIC
    assert corrupt(labels, 10, PairflipCorruption(rate=0.5)).tolist() == GOLDEN_PAIRFLIP


def test_rate_and_targets():
    labels = np.repeat(np.arange(4), 2000)
    noisy = corrupt(labels, 4, PairflipCorruption(rate=0.2))
    flipped = noisy != labels
    assert abs(flipped.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 8000)
    assert ((noisy[flipped] - labels[flipped]) % 4 == 1).all()


def test_one_class_cannot_be_corrupted():
    with pytest.raises(ValueError, match="needs at least 2 classes, the data set has 1"):
        corrupt(np.zeros(3, dtype=np.int64), 1, CORRUPTIONS[0])


GOLDEN_SYMMETRIC = [0, 6, 0, 3, 6, 0, 8, 7, 8, 5, 8, 1, 4, 1, 1, 5, 6, 7, 8, 0]
GOLDEN_PAIRFLIP = [0, 1, 2, 3, 5, 6, 6, 8, 8, 0, 0, 2, 3, 3, 4, 5, 6, 8, 9, 0]
