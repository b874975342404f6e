"""The order of all examples in an epoch, and each rank's share of each step. Pure; the same for every world size.

A step takes the next G of the order, G the global batch size; rank r of W takes every W-th of them, from the r-th on,
so that a last, shorter step is spread over the ranks as evenly as can be. Every rank takes G/W rows a step and as many
steps as the others; missing rows are -1.

`global`: one permutation of everything, for data that lies near. `windowed`, for data that lies far: the shards are
dealt once to S streams of equal length, each epoch shuffles the shards within their stream and the examples within
blocks of a few shards, and the order takes one example of each stream in turn. So a batch mixes S blocks, at most
`window_shards` shards are read at any time, and a rank, where W divides S, reads the same 1/W of the shards each epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.spec import DataSpec, Remainder

PADDING = -1
MAX_STREAMS = 64
"""A power of two, as numbers of ranks mostly are."""


class Rows(NamedTuple):
    """What the order of N examples depends on."""

    name: str
    """Names data set and split: other data, another order."""
    num_shards: int
    shards_N: NDArray[np.int32]
    """The shard that each example lies in, counted from 0."""
    labels_N: NDArray[np.int32]
    """Given labels."""


def keyed_bits(key: str) -> np.random.Philox:
    """A counter-based stream of random bits that depends on `key` alone (its raw output is the same in every NumPy)."""
    hashed = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(hashed, dtype="<u8"))


def epoch_order(rows: Rows, spec: DataSpec, seed: int, epoch: int) -> NDArray[np.int64]:
    """order_M: the rows of this epoch in the order in which they are seen, each once. M = `epoch_size`."""
    chosen_M = balanced_rows(rows, seed, epoch) if spec.class_balanced else None
    match spec.order:
        case "global":
            order_M = permutation(rows.name, seed, epoch, len(rows.shards_N if chosen_M is None else chosen_M))
        case "windowed":
            shards_M = rows.shards_N if chosen_M is None else rows.shards_N[chosen_M]
            order_M = windowed(rows._replace(shards_N=shards_M), spec.window_shards, seed, epoch)
    if chosen_M is not None:
        order_M[:] = chosen_M[order_M]
    return order_M


def epoch_size(rows: Rows, spec: DataSpec) -> int:
    """Examples an epoch, the same for every epoch."""
    return int(_class_shares(rows.labels_N).sum()) if spec.class_balanced else len(rows.shards_N)


def order_name(spec: DataSpec) -> str:
    """What the order depends on beside data, seed and epoch."""
    name = f"windowed by {spec.window_shards} shards" if spec.order == "windowed" else spec.order
    return f"{name}, class-balanced" if spec.class_balanced else name


def permutation(name: str, seed: int, epoch: int, num_examples: int) -> NDArray[np.int64]:
    """order_N: the rows of the split in the order of this epoch: random 64-bit keys, sorted."""
    keys_N = keyed_bits(f"order/{name}/{seed}/{epoch}").random_raw(num_examples)
    return np.argsort(keys_N, kind="stable").astype(np.int64, copy=False)


def windowed(rows: Rows, window_shards: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """order_N: shuffled shards in S streams, examples shuffled within blocks; see above.

    Streams have to be of equal length, so a shard may be cut and dealt to two of them.
    """
    num_examples = len(rows.shards_N)
    num_streams = 1 << (min(MAX_STREAMS, window_shards, rows.num_shards).bit_length() - 1)
    dealt_N = _dealt(rows, seed)
    starts_H = np.flatnonzero(np.diff(rows.shards_N[dealt_N], prepend=-1))  # of the shards in it
    bits = keyed_bits(f"windows/{rows.name}/{seed}/{epoch}")
    order_N = np.empty(num_examples, dtype=np.int64)
    stream_start = 0
    for stream in range(num_streams):
        places = order_N[stream::num_streams]
        stream_end = stream_start + len(places)
        cuts = starts_H[(starts_H > stream_start) & (starts_H < stream_end)]
        pieces = np.split(dealt_N[stream_start:stream_end], cuts - stream_start)
        shuffled = [pieces[place] for place in _shuffle(bits, len(pieces))]
        done = 0
        for block_B in _blocks(shuffled, max(1, window_shards // num_streams)):
            places[done : done + len(block_B)] = block_B[_shuffle(bits, len(block_B))]
            done += len(block_B)
        stream_start = stream_end
    return order_N


def balanced_rows(rows: Rows, seed: int, epoch: int) -> NDArray[np.int32]:
    """rows_M, ascending: as many of each class that occurs as the rarest has, drawn anew each epoch."""
    bits = keyed_bits(f"balance/{rows.name}/{seed}/{epoch}")
    by_class_N = np.argsort(rows.labels_N, kind="stable").astype(np.int32)
    classes = np.split(by_class_N, np.cumsum(np.bincount(rows.labels_N))[:-1])
    shares = _class_shares(rows.labels_N).tolist()
    chosen = [of_class[_shuffle(bits, len(of_class))[:share]] for of_class, share in zip(classes, shares, strict=True)]
    return np.sort(np.concatenate(chosen))


def num_steps(num_examples: int, batch_size: int, remainder: Remainder) -> int:
    """Steps that `num_examples` make, on every rank: the last, shorter one is padded, or dropped."""
    match remainder:
        case "pad":
            return -(-num_examples // batch_size)
        case "drop":
            return num_examples // batch_size


def rank_rows(
    order_M: NDArray[np.int64], start: int, *, batch_size: int, rank: int, world_size: int
) -> NDArray[np.int64]:
    """rows_B, B = G/W: the rank's rows of the step that begins at `start`, PADDING where the epoch has run out."""
    assert batch_size % world_size == 0
    mine = order_M[start : start + batch_size][rank::world_size]
    rows_B = np.full(batch_size // world_size, PADDING, dtype=np.int64)
    rows_B[: len(mine)] = mine
    return rows_B


def _class_shares(labels_N: NDArray[np.int32]) -> NDArray[np.int64]:
    """share_K: examples that a balanced epoch takes of each class."""
    counts_K = np.bincount(labels_N)
    return np.where(counts_K > 0, counts_K[counts_K > 0].min(initial=len(labels_N)), 0)


def _shuffle(bits: np.random.Philox, count: int) -> NDArray[np.int64]:
    """A permutation by the next random numbers."""
    return np.argsort(bits.random_raw(count), kind="stable")


def _dealt(rows: Rows, seed: int) -> NDArray[np.int32]:
    """rows_N: all rows, shard by shard, the shards in the order in which streams get them in every epoch."""
    place_H = np.empty(rows.num_shards, dtype=np.int32)
    place_H[permutation(f"streams/{rows.name}", seed, 0, rows.num_shards)] = np.arange(rows.num_shards)
    return np.argsort(place_H[rows.shards_N], kind="stable").astype(np.int32)


def _blocks(pieces: list[NDArray[np.int32]], num_pieces: int) -> Iterator[NDArray[np.int32]]:
    """Pieces joined, so many at a time."""
    return (np.concatenate(pieces[first : first + num_pieces]) for first in range(0, len(pieces), num_pieces))
