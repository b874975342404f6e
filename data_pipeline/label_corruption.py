"""Injected label noise. Pure. Symmetric and pairflip labels are exactly those that Co-teaching+ makes.

Symmetric n: P_ii = 1 - n, P_ij = n/(K-1). Pairflip n: P_ii = 1 - n, P_{i,(i+1) mod K} = n.
Class-dependent k, β: P_ii = 1 - (k + βi) with i from 1 to K, P_ij = (k + βi)/(K-1): the paper's Eq. 21-22.
One `numpy.random.RandomState(seed)` draws `multinomial(1, P[y], 1)` for each label in data-set order: the order in
which the source lists the examples of the split (column `ordinal` of the index), not the shuffled order of the shards.
"""

from __future__ import annotations

from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from data_pipeline.manifest import Manifest
from data_pipeline.spec import ClassDependentCorruption, Corruption, PairflipCorruption, SymmetricCorruption


def transition_matrix(corruption: Corruption, num_classes: int) -> NDArray[np.float64]:
    """P_KK: row y holds the probabilities of the given label when the label was y."""
    if num_classes < 2:
        raise ValueError(f"corruption {corruption.kind!r} needs at least 2 classes, the data set has {num_classes}")
    match corruption:
        case SymmetricCorruption(rate=rate):
            matrix_KK = np.full((num_classes, num_classes), rate / (num_classes - 1))
            np.fill_diagonal(matrix_KK, 1.0 - rate)
        case PairflipCorruption(rate=rate):
            matrix_KK = np.eye(num_classes) * (1.0 - rate)
            matrix_KK += np.roll(np.eye(num_classes), 1, axis=1) * rate
        case ClassDependentCorruption():
            levels_K = _class_levels(corruption, num_classes)
            matrix_KK = np.repeat(levels_K[:, None] / (num_classes - 1), num_classes, axis=1)
            np.fill_diagonal(matrix_KK, 1.0 - levels_K)
        case _:
            assert_never(corruption)
    return matrix_KK


def _class_levels(corruption: ClassDependentCorruption, num_classes: int) -> NDArray[np.float64]:
    """(K,): the probability that a label of each class is replaced."""
    levels_K: NDArray[np.float64] = corruption.k + corruption.beta * np.arange(1.0, num_classes + 1)
    if levels_K[-1] >= 1:
        raise ValueError(
            f"corruption 'class_dependent': k + beta * {num_classes} = {levels_K[-1]:g} must be below 1:"
            f" the last of {num_classes} classes would lose all its labels; lower k {corruption.k:g} or"
            f" beta {corruption.beta:g}"
        )
    return levels_K


def check_corruption(corruption: Corruption, manifest: Manifest) -> None:
    """ValueError if this noise cannot be injected into the data set's training split at load."""
    built_with = manifest.recipe.corruption
    if built_with is not None:
        raise ValueError(
            f"corruption {corruption.kind!r}: data set {manifest.name!r} was built with {built_with.kind!r} noise"
            " already; build it without, or leave `corruption` out"
        )
    transition_matrix(corruption, len(manifest.classes))


def corrupt(labels_N: NDArray[np.int64], num_classes: int, corruption: Corruption) -> NDArray[np.int64]:
    """Noisy labels for labels in data-set order. Where there is none (-1), nothing is drawn and none is given."""
    matrix_KK = transition_matrix(corruption, num_classes)
    random = np.random.RandomState(corruption.seed)
    known_N = labels_N >= 0
    draws = (int(random.multinomial(1, matrix_KK[label], 1)[0].argmax()) for label in labels_N[known_N])
    noisy_N = labels_N.astype(np.int64)
    noisy_N[known_N] = np.fromiter(draws, dtype=np.int64, count=int(known_N.sum()))
    return noisy_N
