"""Injected label noise, with labels exactly as Co-teaching+ makes them: symmetric and pairflip. Pure.

Symmetric n: P_ii = 1 - n, P_ij = n/(K-1). Pairflip n: P_ii = 1 - n, P_{i,(i+1) mod K} = n.
One `numpy.random.RandomState(seed)` draws `multinomial(1, P[y], 1)` for each label in data-set order: the order in
which the source lists the examples of the split (column `ordinal` of the index), not the shuffled order of the shards.
"""

from __future__ import annotations

from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from data_pipeline.spec import Corruption, PairflipCorruption, SymmetricCorruption


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
        case _:
            assert_never(corruption)
    return matrix_KK


def corrupt(labels_N: NDArray[np.int64], num_classes: int, corruption: Corruption) -> NDArray[np.int64]:
    """Noisy labels for labels in data-set order."""
    matrix_KK = transition_matrix(corruption, num_classes)
    random = np.random.RandomState(corruption.seed)
    draws = (int(random.multinomial(1, matrix_KK[label], 1)[0].argmax()) for label in labels_N)
    return np.fromiter(draws, dtype=np.int64, count=len(labels_N))
