"""Injected noise against a second, independent writing of the same definition."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.label_corruption import corrupt, transition_matrix
from data_pipeline.spec import ClassDependentCorruption, PairflipCorruption, SymmetricCorruption

BY_RATE = [SymmetricCorruption(rate=0.4, seed=0), PairflipCorruption(rate=0.45, seed=7)]
CORRUPTIONS = [*BY_RATE, ClassDependentCorruption(k=0.1, beta=0.05, seed=3)]


@pytest.mark.parametrize("corruption", BY_RATE, ids=lambda corruption: corruption.kind)
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


@pytest.mark.parametrize(("k", "beta", "num_classes"), [(0.1, 0.05, 10), (0.0, 0.3, 3), (0.45, 0.2, 2)])
def test_class_dependent_matrix_is_the_definition(k, beta, num_classes):
    """Eq. 21-22, whose classes count from 1."""
    matrix = transition_matrix(ClassDependentCorruption(k=k, beta=beta), num_classes)
    for true in range(1, num_classes + 1):
        for given in range(1, num_classes + 1):
            level = k + beta * true
            expected = 1 - level if given == true else level / (num_classes - 1)
            assert matrix[true - 1, given - 1] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)


def test_a_class_that_would_lose_all_its_labels_is_refused():
    with pytest.raises(ValueError, match=r"k \+ beta \* 14 = 1\.1 must be below 1: the last of 14 classes"):
        transition_matrix(ClassDependentCorruption(k=0.4, beta=0.05), 14)
    with pytest.raises(ValueError, match=r"k \+ beta \* 2 = 1 must be below 1"):
        transition_matrix(ClassDependentCorruption(k=0.5, beta=0.25), 2)


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
    assert corrupt(labels, 10, ClassDependentCorruption(k=0.1, beta=0.05)).tolist() == GOLDEN_CLASS_DEPENDENT


def test_rate_and_targets():
    labels = np.repeat(np.arange(4), 2000)
    noisy = corrupt(labels, 4, PairflipCorruption(rate=0.2))
    flipped = noisy != labels
    assert abs(flipped.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 8000)
    assert ((noisy[flipped] - labels[flipped]) % 4 == 1).all()


def test_class_dependent_levels_grow_class_by_class():
    labels = np.repeat(np.arange(4), 4000)
    flipped = (corrupt(labels, 4, ClassDependentCorruption(k=0.1, beta=0.15)) != labels).reshape(4, 4000)
    levels = np.array([0.25, 0.4, 0.55, 0.7])
    assert (abs(flipped.mean(axis=1) - levels) < 4 * np.sqrt(levels * (1 - levels) / 4000)).all()


def test_one_class_cannot_be_corrupted():
    with pytest.raises(ValueError, match="needs at least 2 classes, the data set has 1"):
        corrupt(np.zeros(3, dtype=np.int64), 1, CORRUPTIONS[0])


GOLDEN_SYMMETRIC = [0, 6, 0, 3, 6, 0, 8, 7, 8, 5, 8, 1, 4, 1, 1, 5, 6, 7, 8, 0]
GOLDEN_PAIRFLIP = [0, 1, 2, 3, 5, 6, 6, 8, 8, 0, 0, 2, 3, 3, 4, 5, 6, 8, 9, 0]
GOLDEN_CLASS_DEPENDENT = [0, 1, 2, 3, 4, 6, 5, 7, 2, 9, 0, 1, 1, 3, 4, 5, 2, 1, 8, 7]
