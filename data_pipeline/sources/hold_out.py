"""Examples of a training set held out as val, drawn by a seed of their own. Pure."""

from __future__ import annotations

import numpy as np


def hold_out(num_train: int, num_val: int, seed: int) -> tuple[list[int], list[int]]:
    """(rows of train, rows of val), each ascending, together all `num_train`."""
    if not 0 <= num_val < num_train:
        raise ValueError(f"num_val {num_val} must be 0 to {num_train - 1}, the training examples less one")
    shuffled = np.random.RandomState(seed).permutation(num_train)
    return sorted(shuffled[num_val:].tolist()), sorted(shuffled[:num_val].tolist())
