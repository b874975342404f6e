"""Batches of one rank: read, checked, decoded and cropped by threads, a few batches ahead.

Where a run stands is (manifest digest, order, seed, epoch, examples delivered), the same on every rank, so any rank of
any world size can go on from it, with batches of another size too. A batch counts when it is handed over, not when it
is prefetched; to go on is to begin the order further down, whatever was before is not read again.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypedDict

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline import plan
from data_pipeline.errors import BadImageError, QuarantineLimitError
from data_pipeline.examples import UNKNOWN_LABEL, ExampleTable
from data_pipeline.pictures import crop
from data_pipeline.pictures.batch_decoder import BatchDecoder, CPUBatchDecoder
from data_pipeline.reading.cache import ShardCache
from data_pipeline.reading.lookahead import Lookahead
from data_pipeline.reading.reader import ShardReader
from data_pipeline.spec import DataSpec, Remainder, num_tolerated

PREFETCH_BATCHES = 3
SHARDS_AHEAD = 4
"""Shards that are fetched ahead where examples are read as listed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """One rank's share of a step; B = global batch size / world size."""

    images_BHWC: Tensor
    """uint8, RGB, not yet flipped. Rows not valid repeat valid ones, so that batch statistics see no black pictures;
    a rank that has none, which happens in a last step of fewer examples than ranks, gets black ones. On the CPU, or
    where the pictures were decoded."""
    given_labels_B: Tensor
    """int64; 0 in padding."""
    clean_labels_B: Tensor
    """int64; -1 = unknown or padding."""
    indices_B: Tensor
    """int64 row in the ExampleTable; -1 in padding."""
    valid_B: Tensor
    """bool; False: padding or unreadable, to be left out of loss and metrics."""
    flip_B: Tensor
    """bool; True: to be mirrored by `augment.to_model_input`."""
    num_valid_global: int
    """Examples of this step over all ranks by arithmetic: all but padding. Unreadable ones count, as no rank knows the
    others'."""


@dataclasses.dataclass(frozen=True)
class BadExample:
    """An example that could not be read, and why."""

    row: int
    example_id: str
    shard: str
    reason: str


class LoaderState(TypedDict):
    """Where a run stands in its data; equal on all ranks."""

    digest: str
    num_examples: int
    labels_xxh3: str
    """Of the given labels: noise may have been injected at load."""
    order: str
    seed: int
    batch_size: int
    """Of the run so far; the order does not depend on it."""
    epoch: int
    examples_delivered: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Pending:
    """A batch under way: what is being read becomes tasks that decode it."""

    batch: Batch
    end: int
    """Place in the epoch's order that follows the batch, over all ranks."""
    reading: Future[list[Future[list[BadExample]]]]


class Loader:
    """One rank's batches of a table; with `shuffle` (training) in a new order each epoch, cropped and flipped anew."""

    def __init__(
        self,
        table: ExampleTable,
        data_spec: DataSpec,
        *,
        rank: int,
        world_size: int,
        seed: int,
        shuffle: bool,
        batch_size: int,
        cache: ShardCache | None = None,
        decode_device: torch.device | None = None,
    ) -> None:
        """`cache` keeps shards of remote data sets; `decode_device`: decode there rather than on the CPU."""
        if not len(table):
            raise ValueError(f"split {table.split!r} has no examples to load")
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} must be a multiple of the number of ranks {world_size}")
        assert 0 <= rank < world_size
        self._table, self._spec = table, data_spec
        self._rank, self._world_size = rank, world_size
        self._seed, self._shuffle, self._batch_size = seed, shuffle, batch_size
        self._rows = plan.Rows(
            f"{table.digest}/{table.split}", len(table.shard_files), table.shard_indices, table.given_labels
        )
        self._remainder: Remainder = data_spec.remainder if shuffle else "pad"
        self._epoch_size = plan.epoch_size(self._rows, data_spec) if shuffle else len(table)
        if not self.num_batches:
            raise ValueError(
                f"remainder 'drop' leaves nothing: batch_size {batch_size} must be at most {self._epoch_size}, the"
                f" examples of {table.split!r} an epoch"
            )
        self._epoch = self._examples_delivered = 0
        self._quarantine: dict[int, BadExample] = {}
        self._reader = ShardReader(table, cache)
        self._decoder = _decoder(batch_size // world_size, data_spec, decode_device)
        self._readers = ThreadPoolExecutor(1 + PREFETCH_BATCHES, thread_name_prefix="hush-reader")
        self._decoders = ThreadPoolExecutor(data_spec.num_threads, thread_name_prefix="hush-loader")

    @property
    def num_batches(self) -> int:
        """Batches an epoch, equal on all ranks."""
        return plan.num_steps(self._epoch_size, self._batch_size, self._remainder)

    @property
    def quarantine(self) -> list[BadExample]:
        """Examples this rank found unreadable, each once, in order of discovery. `max_bad_fraction` limits these; ranks
        that count together give their loaders a limit of 1, and hold the sum against it themselves."""
        return list(self._quarantine.values())

    def epoch(self, epoch: int, start_example: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from this place in its order on. Leaving the loop early drops what was prefetched."""
        if not 0 <= start_example <= self._epoch_size:
            raise ValueError(
                f"start_example {start_example} must lie between 0 and {self._epoch_size}, the epoch's end"
            )
        return self._batches(epoch, start_example)

    def examples_before(self, batch: int) -> int:
        """Examples that an epoch's first `batch` batches deliver over all ranks: where the next one starts."""
        return min(batch * self._batch_size, self._epoch_size)

    def state_dict(self) -> LoaderState:
        """Where the epoch stands that gave the last batch, or was begun since.

        To go on: `epoch(state["epoch"], state["examples_delivered"])`.
        """
        return LoaderState(
            digest=self._table.digest,
            num_examples=len(self._table),
            labels_xxh3=xxhash.xxh3_64_hexdigest(self._table.given_labels.tobytes()),
            order=plan.order_name(self._spec) if self._shuffle else "as listed",
            seed=self._seed,
            batch_size=self._batch_size,
            epoch=self._epoch,
            examples_delivered=self._examples_delivered,
        )

    def load_state_dict(self, state: LoaderState) -> None:
        """Take over where a run stood; refused if its examples, their labels or order would not be the same."""
        mine = self.state_dict()
        for field in ("digest", "num_examples", "labels_xxh3", "order", "seed"):
            if state[field] != mine[field]:
                raise ValueError(
                    f"{field} was {state[field]!r} when this run began, now it is {mine[field]!r}; it must be the same"
                )
        self._epoch, self._examples_delivered = state["epoch"], state["examples_delivered"]

    def close(self) -> None:
        """Stop the threads and close the shards; batches delivered stay good."""
        self._readers.shutdown(wait=True, cancel_futures=True)  # first: they hand work to the decoders
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order_M = self._order(epoch)
        pending: deque[_Pending] = deque()
        self._epoch, self._examples_delivered = epoch, start
        num_batches = plan.num_steps(self._epoch_size - start, self._batch_size, self._remainder)
        fetch_ahead = self._fetch_ahead(order_M[start:])
        try:
            for number in range(num_batches + PREFETCH_BATCHES):
                if number < num_batches:
                    fetch_ahead(number)
                    pending.append(self._submit(order_M, epoch, start + number * self._batch_size))
                if pending and (number >= num_batches or len(pending) > PREFETCH_BATCHES):
                    batch = self._finish(pending[0])
                    self._epoch, self._examples_delivered = epoch, pending.popleft().end
                    yield batch
        finally:
            for one in pending:
                _cancel(one)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(len(self._table), dtype=np.int64)
        return plan.epoch_order(self._rows, self._spec, self._seed, epoch)

    def _fetch_ahead(self, order_M: NDArray[np.int64]) -> Callable[[int], None]:
        """What tells the reader, before batch `number` of this order, which shards come next. Where the order is global
        it cannot: any shard may."""
        if not self._reader.can_prefetch or (self._shuffle and self._spec.order == "global"):
            return lambda _: None
        table, size = self._table, self._batch_size // self._world_size
        lookahead = Lookahead(table.shard_indices[order_M[self._rank :: self._world_size]])
        num_shards = self._spec.window_shards if self._shuffle else SHARDS_AHEAD
        num_rows = num_shards * len(table) // len(table.shard_files) // self._world_size + size
        return lambda number: self._reader.prefetch(lookahead.shards(number * size, number * size + num_rows))

    def _submit(self, order_M: NDArray[np.int64], epoch: int, start: int) -> _Pending:
        """Lay out the batch that begins here, and let the threads fill in its pictures."""
        table = self._table
        rows_B = plan.rank_rows(
            order_M, start, batch_size=self._batch_size, rank=self._rank, world_size=self._world_size
        )
        padding_B = rows_B == plan.PADDING
        end = min(start + self._batch_size, self._epoch_size)
        batch = Batch(
            images_BHWC=self._decoder.lend(),
            given_labels_B=torch.from_numpy(np.where(padding_B, 0, table.given_labels[rows_B]).astype(np.int64)),
            clean_labels_B=torch.from_numpy(
                np.where(padding_B, UNKNOWN_LABEL, table.clean_labels[rows_B]).astype(np.int64)
            ),
            indices_B=torch.from_numpy(rows_B),
            valid_B=torch.from_numpy(~padding_B),
            flip_B=torch.zeros(len(rows_B), dtype=torch.bool),
            num_valid_global=end - start,
        )
        return _Pending(batch, end, self._readers.submit(self._read, batch, epoch))

    def _read(self, batch: Batch, epoch: int) -> list[Future[list[BadExample]]]:
        """In a thread: fetch all bytes of the batch at once, then let other threads decode them."""
        rows = batch.indices_B[batch.valid_B].tolist()  # padding, which is not valid, comes last
        contents = self._reader.read_many(rows)
        at_a_time = self._decoder.pictures_per_call
        return [
            self._decoders.submit(self._fill, batch, first, contents[first : first + at_a_time], epoch)
            for first in range(0, len(rows), at_a_time)
        ]

    def _fill(self, batch: Batch, first: int, contents: list[bytes | BadImageError], epoch: int) -> list[BadExample]:
        """In a thread: decode pictures into the batch from position `first` on, each position in one thread only."""
        last = first + len(contents)
        rows = batch.indices_B[first:last].tolist()
        crops = [self._crop(row, epoch) for row in rows]
        problems = self._decoder.decode_boxes(contents, [box for box, _ in crops], batch.images_BHWC[first:last])
        batch.flip_B.numpy()[first:last] = [is_flipped for _, is_flipped in crops]
        batch.valid_B.numpy()[first:last] = [problem is None for problem in problems]
        return [
            BadExample(row, self._table.example_ids[row], self._table.shard_of(row), str(problem))
            for row, problem in zip(rows, problems, strict=True)
            if problem is not None
        ]

    def _crop(self, row: int, epoch: int) -> tuple[crop.Box, bool]:
        """The part of the picture that is used, and whether it is to be flipped."""
        table = self._table
        height, width = int(table.heights[row]), int(table.widths[row])
        if self._spec.augmentation == "none":
            return crop.Box(0, 0, height, width), False
        if not self._shuffle:
            return crop.centre_box(height, width, self._spec.image_size), False
        draws = crop.draws_for(self._seed, epoch, table.example_ids[row])
        return crop.random_box(draws, height, width), crop.is_flipped(draws)

    def _finish(self, pending: _Pending) -> Batch:
        """Wait for the pictures; record the unreadable ones, and refuse to go on past the limit."""
        for task in pending.reading.result():
            for bad in task.result():
                self._quarantine.setdefault(bad.row, bad)
        max_bad_examples = num_tolerated(self._spec.max_bad_fraction, len(self._table))
        if len(self._quarantine) > max_bad_examples:
            first = "; ".join(f"{bad.example_id}: {bad.reason}" for bad in self.quarantine[:3])
            raise QuarantineLimitError(
                f"{len(self._quarantine)} of {len(self._table)} examples of {self._table.split!r} are unreadable;"
                f" max_bad_fraction {self._spec.max_bad_fraction:g} tolerates {max_bad_examples}."
                f" The first: {first}"
            )
        _fill_gaps(pending.batch)
        return pending.batch


def _decoder(batch_size: int, spec: DataSpec, device: torch.device | None) -> BatchDecoder:
    if device is None:
        return CPUBatchDecoder(
            batch_size, spec.image_size, num_threads=spec.num_threads, num_batches=1 + PREFETCH_BATCHES
        )
    from data_pipeline.pictures.cuda_decode import CUDABatchDecoder  # noqa: PLC0415 -- torchvision, which nobody else needs here

    return CUDABatchDecoder(device, batch_size, spec.image_size)


def _fill_gaps(batch: Batch) -> None:
    """Give rows that are not valid the pictures of valid ones, in turn."""
    valid_rows = torch.nonzero(batch.valid_B).flatten()
    other_rows = torch.nonzero(~batch.valid_B).flatten()
    if not len(valid_rows):
        batch.images_BHWC.zero_()
    elif len(other_rows):
        batch.images_BHWC[other_rows] = batch.images_BHWC[valid_rows[torch.arange(len(other_rows)) % len(valid_rows)]]


def _cancel(pending: _Pending) -> None:
    """Have no thread begin on a batch that nobody waits for."""
    pending.reading.cancel()
    if pending.reading.done() and not pending.reading.cancelled() and pending.reading.exception() is None:
        for task in pending.reading.result():
            task.cancel()
