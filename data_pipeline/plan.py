"""The order of all examples in an epoch, and each rank's share of each step. Pure; the same for every world size.

Step t takes order[tG : (t+1)G], G the global batch size; rank r of W takes every W-th of them, from the r-th on, so
that the last, shorter step is spread over the ranks as evenly as can be. Every rank takes ceil(N/G) steps of G/W rows;
missing rows are -1.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

PADDING = -1


def keyed_bits(key: str) -> np.random.Philox:
    """A counter-based stream of random bits that depends on `key` alone (its raw output is the same in every NumPy)."""
    hashed = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(hashed, dtype="<u8"))


def permutation(digest: str, seed: int, epoch: int, num_examples: int) -> NDArray[np.int64]:
    """order_N: the rows of the split in the order of this epoch: random 64-bit keys, sorted."""
    keys_N = keyed_bits(f"order/{digest}/{seed}/{epoch}").random_raw(num_examples)
    return np.argsort(keys_N, kind="stable").astype(np.int64, copy=False)


def num_steps(num_examples: int, batch_size: int) -> int:
    """Steps an epoch, on every rank: ceil(N / G)."""
    return -(-num_examples // batch_size)


def num_valid(num_examples: int, batch_size: int, step: int) -> int:
    """Examples (not padding) of a step over all ranks."""
    return max(0, min(batch_size, num_examples - step * batch_size))


def rank_rows(
    order_N: NDArray[np.int64], step: int, *, batch_size: int, rank: int, world_size: int
) -> NDArray[np.int64]:
    """rows_B, B = G/W: the rank's rows of a step, PADDING where the split has run out."""
    assert batch_size % world_size == 0
    mine = order_N[step * batch_size : (step + 1) * batch_size][rank::world_size]
    rows_B = np.full(batch_size // world_size, PADDING, dtype=np.int64)
    rows_B[: len(mine)] = mine
    return rows_B
