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
    return order_M if chosen_M is None else chosen_M[order_M]


def epoch_size(rows: Rows, spec: DataSpec) -> int:
    """Examples an epoch, the same for every epoch."""
    return int(_class_share(rows.labels_N).sum()) if spec.class_balanced else len(rows.shards_N)


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
    counts_H = np.bincount(rows.shards_N, minlength=rows.num_shards)
    num_streams = 1 << (min(MAX_STREAMS, window_shards, rows.num_shards).bit_length() - 1)
    dealt_H = permutation(f"streams/{rows.name}", seed, 0, len(counts_H))
    stream_ends = np.cumsum([len(range(stream, num_examples, num_streams)) for stream in range(num_streams)])
    # A piece: what one stream has of one shard. All of them, in the order in which the shards were dealt.
    ends_P = np.union1d(stream_ends, np.cumsum(counts_H[dealt_H]))
    ends_P = ends_P[ends_P > 0]
    streams_P = np.searchsorted(stream_ends, ends_P)
    blocks_P = _blocks(streams_P, max(1, window_shards // num_streams), f"{rows.name}/{seed}/{epoch}")
    places_N = _in_blocks(np.repeat(blocks_P, np.diff(ends_P, prepend=0)), f"{rows.name}/{seed}/{epoch}")
    order_N = _rows_by_shard(rows.shards_N, counts_H, dealt_H)[places_N]
    starts = stream_ends - np.diff(stream_ends, prepend=0)
    for stream, (start, end) in enumerate(zip(starts, stream_ends, strict=True)):
        places_N[stream::num_streams] = order_N[start:end]
    return places_N


def balanced_rows(rows: Rows, seed: int, epoch: int) -> NDArray[np.int64]:
    """rows_M, ascending: as many of each class that occurs as the rarest has, drawn anew each epoch."""
    bits_N = keyed_bits(f"balance/{rows.name}/{seed}/{epoch}").random_raw(len(rows.labels_N))
    by_class_N = np.argsort(rows.labels_N.astype(np.uint64) << np.uint64(44) | bits_N >> np.uint64(20), kind="stable")
    counts_K = np.bincount(rows.labels_N)
    first_K = np.cumsum(counts_K) - counts_K
    rank_N = np.arange(len(by_class_N)) - np.repeat(first_K, counts_K)
    chosen_M = by_class_N[rank_N < _class_share(rows.labels_N).max()]
    return np.sort(chosen_M).astype(np.int64, copy=False)


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


def _class_share(labels_N: NDArray[np.int32]) -> NDArray[np.int64]:
    """share_K: examples that a balanced epoch takes of each class."""
    counts_K = np.bincount(labels_N)
    return np.where(counts_K > 0, counts_K[counts_K > 0].min(initial=len(labels_N)), 0)


def _blocks(streams_P: NDArray[np.int64], pieces_per_block: int, key: str) -> NDArray[np.int64]:
    """block_P: each piece's block; a stream's pieces are shuffled, and blocks are numbered stream by stream."""
    draws_P = keyed_bits(f"pieces/{key}").random_raw(len(streams_P))
    shuffled_P = np.lexsort((draws_P, streams_P))
    place_P = np.arange(len(streams_P)) - np.searchsorted(streams_P, streams_P)  # within the stream, which ascend
    is_first_P = (place_P % pieces_per_block) == 0
    blocks_P = np.empty_like(shuffled_P)
    blocks_P[shuffled_P] = np.cumsum(is_first_P) - 1
    return blocks_P


def _in_blocks(blocks_N: NDArray[np.int64], key: str) -> NDArray[np.int64]:
    """place_N: places by block, and at random within a block."""
    keys_N = keyed_bits(f"examples/{key}").random_raw(len(blocks_N))
    keys_N >>= np.uint64(20)
    keys_N |= blocks_N.astype(np.uint64) << np.uint64(44)
    return np.argsort(keys_N, kind="stable").astype(np.int64, copy=False)


def _rows_by_shard(
    shards_N: NDArray[np.int32], counts_H: NDArray[np.int64], dealt_H: NDArray[np.int64]
) -> NDArray[np.int64]:
    """row_N: all rows, shard by shard in the order of `dealt_H`."""
    by_shard_N = np.argsort(shards_N, kind="stable")
    first_H = np.cumsum(counts_H) - counts_H
    dealt_counts_H = counts_H[dealt_H]
    shift_H = first_H[dealt_H] - (np.cumsum(dealt_counts_H) - dealt_counts_H)
    places_N: NDArray[np.int64] = by_shard_N[np.arange(len(shards_N)) + np.repeat(shift_H, dealt_counts_H)]
    return places_N
