"""Batches of one rank: read, checked, decoded and cropped by threads, a few batches ahead.

Where a run stands is (manifest digest, seed, epoch, batches delivered), the same on every rank, so any rank of any
world size can go on from it. A batch counts when it is handed over, not when it is prefetched.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline import crop, decode, plan
from data_pipeline.errors import BadImageError, QuarantineLimitError
from data_pipeline.examples import UNKNOWN_LABEL, ExampleTable
from data_pipeline.reader import ShardReader
from data_pipeline.spec import DataSpec

PREFETCH_BATCHES = 3
ROWS_PER_TASK = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """One rank's share of a step; B = global batch size / world size."""

    images_BHWC: Tensor
    """uint8, RGB, not yet flipped. Rows not valid repeat valid ones, so that batch statistics see no black pictures;
    a rank that has none, which happens in a last step of fewer examples than ranks, gets black ones."""
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
    batch_size: int
    seed: int
    epoch: int
    batches_delivered: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Pending:
    batch: Batch
    tasks: list[Future[list[BadExample]]]


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
    ) -> None:
        if not len(table):
            raise ValueError(f"split {table.split!r} has no examples to load")
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} must be a multiple of the number of ranks {world_size}")
        assert 0 <= rank < world_size
        self._table, self._spec = table, data_spec
        self._rank, self._world_size = rank, world_size
        self._seed, self._shuffle, self._batch_size = seed, shuffle, batch_size
        self._epoch = self._batches_delivered = 0
        self._quarantine: dict[int, BadExample] = {}
        self._reader = ShardReader(table)
        decode.use_one_thread_per_call()
        self._threads = ThreadPoolExecutor(data_spec.num_threads, thread_name_prefix="hush-loader")

    @property
    def num_batches(self) -> int:
        """Batches an epoch, equal on all ranks."""
        return plan.num_steps(len(self._table), self._batch_size)

    @property
    def quarantine(self) -> list[BadExample]:
        """Examples this rank found unreadable, each once, in order of discovery."""
        return list(self._quarantine.values())

    @property
    def max_bad_examples(self) -> int:
        """Unreadable examples that are tolerated: floor(max_bad_fraction * N). Each rank knows its own only, so whoever
        knows all ranks' counts holds their sum against this."""
        return int(self._spec.max_bad_fraction * len(self._table))

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from `start_batch` on. Leaving the loop early drops what was prefetched."""
        if not 0 <= start_batch <= self.num_batches:
            raise ValueError(f"start_batch {start_batch} must lie between 0 and num_batches {self.num_batches}")
        return self._batches(epoch, start_batch)

    def state_dict(self) -> LoaderState:
        """Epoch begun last, batches delivered of it: go on with `epoch(state["epoch"], state["batches_delivered"])`."""
        return LoaderState(
            digest=self._table.digest,
            num_examples=len(self._table),
            batch_size=self._batch_size,
            seed=self._seed,
            epoch=self._epoch,
            batches_delivered=self._batches_delivered,
        )

    def load_state_dict(self, state: LoaderState) -> None:
        """Take over where a run stood; refused if order or batches would not be the same."""
        mine = self.state_dict()
        for field in ("digest", "num_examples", "batch_size", "seed"):
            if state[field] != mine[field]:
                raise ValueError(
                    f"{field} was {state[field]!r} when this run began, now it is {mine[field]!r}; it must be the same"
                )
        self._epoch, self._batches_delivered = state["epoch"], state["batches_delivered"]

    def close(self) -> None:
        """Stop the threads and close the shards; batches delivered stay good."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        order_N = self._order(epoch)
        pending: deque[_Pending] = deque()
        self._epoch, self._batches_delivered = epoch, start_batch
        try:
            for step in range(start_batch, self.num_batches + PREFETCH_BATCHES):
                if step < self.num_batches:
                    pending.append(self._submit(order_N, epoch, step))
                if pending and (step >= self.num_batches or len(pending) > PREFETCH_BATCHES):
                    batch = self._finish(pending.popleft())
                    self._batches_delivered += 1
                    yield batch
        finally:
            for task in (task for one in pending for task in one.tasks):
                task.cancel()

    def _order(self, epoch: int) -> NDArray[np.int64]:
        num_examples = len(self._table)
        if not self._shuffle:
            return np.arange(num_examples, dtype=np.int64)
        return plan.permutation(f"{self._table.digest}/{self._table.split}", self._seed, epoch, num_examples)

    def _submit(self, order_N: NDArray[np.int64], epoch: int, step: int) -> _Pending:
        """Lay out the batch, and let the threads fill in its pictures."""
        table, size = self._table, self._spec.image_size
        rows_B = plan.rank_rows(
            order_N, step, batch_size=self._batch_size, rank=self._rank, world_size=self._world_size
        )
        padding_B = rows_B == plan.PADDING
        batch = Batch(
            images_BHWC=torch.zeros((len(rows_B), size, size, 3), dtype=torch.uint8),
            given_labels_B=torch.from_numpy(np.where(padding_B, 0, table.given_labels[rows_B])),
            clean_labels_B=torch.from_numpy(np.where(padding_B, UNKNOWN_LABEL, table.clean_labels[rows_B])),
            indices_B=torch.from_numpy(rows_B),
            valid_B=torch.from_numpy(~padding_B),
            flip_B=torch.zeros(len(rows_B), dtype=torch.bool),
            num_valid_global=plan.num_valid(len(table), self._batch_size, step),
        )
        positions = np.flatnonzero(~padding_B)
        chunks = [positions[start : start + ROWS_PER_TASK] for start in range(0, len(positions), ROWS_PER_TASK)]
        return _Pending(batch, [self._threads.submit(self._fill, batch, chunk, epoch) for chunk in chunks])

    def _fill(self, batch: Batch, positions: NDArray[np.int64], epoch: int) -> list[BadExample]:
        """In a thread: decode the rows at these positions into the batch, each position in one thread only."""
        images_BHWC, flip_B, valid_B = batch.images_BHWC.numpy(), batch.flip_B.numpy(), batch.valid_B.numpy()
        bad: list[BadExample] = []
        for position in positions.tolist():
            row = int(batch.indices_B[position])
            try:
                images_BHWC[position], flip_B[position] = self._picture(row, epoch)
            except BadImageError as error:
                valid_B[position] = False
                shard = self._table.shard_names[self._table.shard_indices[row]]
                bad.append(BadExample(row, self._table.example_ids[row], shard, str(error)))
        return bad

    def _picture(self, row: int, epoch: int) -> tuple[NDArray[np.uint8], bool]:
        """(uint8 (S, S, 3), whether to flip it)."""
        table, size = self._table, self._spec.image_size
        height, width = int(table.heights[row]), int(table.widths[row])
        flip = False
        if self._spec.augmentation == "none":
            box = crop.Box(0, 0, height, width)
        elif self._shuffle:
            draws = crop.draws_for(self._seed, epoch, table.example_ids[row])
            box, flip = crop.random_box(draws, height, width), crop.is_flipped(draws)
        else:
            box = crop.centre_box(height, width, size)
        return decode.crop_and_resize(decode.decode(self._reader.read(row)), box, size), flip

    def _finish(self, pending: _Pending) -> Batch:
        """Wait for the pictures; record the unreadable ones, and refuse to go on past the limit."""
        for task in pending.tasks:
            for bad in task.result():
                self._quarantine.setdefault(bad.row, bad)
        if len(self._quarantine) > self.max_bad_examples:
            first = "; ".join(f"{bad.example_id}: {bad.reason}" for bad in self.quarantine[:3])
            raise QuarantineLimitError(
                f"{len(self._quarantine)} of {len(self._table)} examples of {self._table.split!r} are unreadable;"
                f" max_bad_fraction {self._spec.max_bad_fraction:g} tolerates {self.max_bad_examples}."
                f" The first: {first}"
            )
        batch = pending.batch
        valid_rows = torch.nonzero(batch.valid_B).flatten()
        other_rows = torch.nonzero(~batch.valid_B).flatten()
        if len(valid_rows) and len(other_rows):
            batch.images_BHWC[other_rows] = batch.images_BHWC[
                valid_rows[torch.arange(len(other_rows)) % len(valid_rows)]
            ]
        return batch
