"""What is kept of each tracked example: this epoch's figures, and what the recorded epochs add up to.

Ranks measure (`example_rows`), rank 0 collects the rows in any order and keeps the record. Its memory is 36 bytes an
example for the epoch, 33 for the running figures, 12 for labels and shard, and 8 and its length for the name: a million
examples with names of 25 characters take 114 MB, however many epochs are recorded. Writing the table takes ROW_GROUP
rows at a time, 40 MB more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.label_noise.estimators import NoiseEstimate
from trainer.run_schema import EXAMPLE_COLUMNS

MEASURES = (
    "p_given",
    "loss",
    "margin",
    "entropy",
    "epsilon_exact",
    "epsilon_exact_given",
    "epsilon_linearised",
)
ROW_GROUP = 100_000
"""Rows of the table that are made and written at once."""
ROW_COLUMNS = ("slot", "predicted_label", *MEASURES)
"""Columns of the rows that ranks send, float64; NaN where there is no value."""

_TYPES = {
    "example_id": pa.string(),
    "shard": pa.dictionary(pa.int32(), pa.string()),
    "given_label": pa.int32(),
    "clean_label": pa.int32(),
    "predicted_label": pa.int32(),
    "num_records": pa.int32(),
    "forgetting_events": pa.int32(),
}
_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.float32())) for name in EXAMPLE_COLUMNS])


def example_rows(slots_B: Tensor, given_labels_B: Tensor, estimate: NoiseEstimate) -> Tensor:
    """Rows (B, len(ROW_COLUMNS)) of a batch, float64. A slot is an example's position in the record; -1 is padding."""
    logits_BC = estimate.logits_at_mean_BC.double()
    log_p_BC = logits_BC.log_softmax(dim=1)
    given_B1 = given_labels_B[:, None]
    log_p_given_B = log_p_BC.gather(1, given_B1)[:, 0]
    others_BC = logits_BC.scatter(1, given_B1, -torch.inf)
    missing_B = torch.full_like(log_p_given_B, torch.nan)
    exact_B = given_B = linearised_B = missing_B
    if estimate.exact_BC is not None:
        exact_B = estimate.exact_BC.double().norm(dim=1)
        given_B = estimate.exact_BC.double().gather(1, given_B1)[:, 0]
    if estimate.linearised_sq_B is not None:
        linearised_B = estimate.linearised_sq_B.double().sqrt()
    columns = {
        "slot": slots_B.double(),
        "predicted_label": logits_BC.argmax(dim=1).double(),
        "p_given": log_p_given_B.exp(),
        "loss": -log_p_given_B,
        "margin": logits_BC.gather(1, given_B1)[:, 0] - others_BC.amax(dim=1),
        "entropy": -torch.special.xlogy(log_p_BC.exp(), log_p_BC.exp()).sum(dim=1),
        "epsilon_exact": exact_B,
        "epsilon_exact_given": given_B,
        "epsilon_linearised": linearised_B,
    }
    return torch.stack([columns[name] for name in ROW_COLUMNS], dim=1)


class ExampleRecord:
    """Figures of tracked examples. One that an epoch doesn't reach has nulls there, and keeps its running figures."""

    def __init__(
        self,
        example_ids: Sequence[str] | NDArray[np.object_],
        shards: Sequence[str] | NDArray[np.object_],
        given_labels: NDArray[np.integer[Any]],
        clean_labels: NDArray[np.integer[Any]],
    ) -> None:
        """Slot i of the record is the i-th of these examples; a clean label of -1 is unknown."""
        n = len(example_ids)
        if not len(shards) == len(given_labels) == len(clean_labels) == n:
            raise ValueError(f"example_ids, shards, given_labels and clean_labels must have the same length, {n}")
        self._example_ids = pa.array(example_ids, pa.large_string())
        self._shards = pa.array(shards, pa.string()).dictionary_encode()
        self._given_labels = np.asarray(given_labels, dtype=np.int32)
        self._clean_labels = np.asarray(clean_labels, dtype=np.int32)
        self._now: dict[str, NDArray[np.float32]] = {
            name: np.full(n, np.nan, dtype=np.float32) for name in (*MEASURES, "epsilon_training")
        }
        self._predicted = np.full(n, -1, dtype=np.int32)
        self._running: dict[str, NDArray[Any]] = {
            "num_records": np.zeros(n, dtype=np.int32),
            "aum": np.zeros(n, dtype=np.float64),
            "confidence": np.zeros(n, dtype=np.float64),
            "squares": np.zeros(n, dtype=np.float64),  # Σ (p - mean p)², by Welford's update
            "learned": np.zeros(n, dtype=np.bool_),  # predicted as given at the last record
            "forgetting_events": np.zeros(n, dtype=np.int32),
        }

    def __len__(self) -> int:
        return len(self._given_labels)

    @property
    def num_recorded(self) -> int:
        """Examples that this epoch has recorded."""
        return int((self._predicted >= 0).sum())

    def start_epoch(self) -> None:
        """Forget the figures of the epoch before; the running ones stay."""
        self._predicted.fill(-1)
        for column in self._now.values():
            column.fill(np.nan)

    def update(self, rows: Tensor) -> None:
        """Take rows of `example_rows`, of any rank and in any order; each example at most once an epoch."""
        table = rows.detach().to("cpu", torch.float64).numpy()
        table = table[table[:, 0] >= 0]
        slots = table[:, 0].astype(np.int64)
        assert len(np.unique(slots)) == len(slots), "an example is recorded once an epoch"
        assert (self._predicted[slots] == -1).all(), "an example is recorded once an epoch"
        columns = dict(zip(ROW_COLUMNS, table.T, strict=True))
        self._predicted[slots] = columns["predicted_label"].astype(np.int32)
        for name in MEASURES:
            self._now[name][slots] = columns[name]
        self._add_to_running(slots, columns)

    def update_trained(self, norms_N: NDArray[np.float32]) -> None:
        """Take the epoch's `epsilon_training` of all examples, in slot order; NaN where no step came by."""
        self._now["epsilon_training"][:] = norms_N

    def to_table(self, columns: Sequence[str] = tuple(EXAMPLE_COLUMNS), rows: slice = slice(None)) -> pa.Table:
        """One row for each tracked example, in slot order."""
        schema = pa.schema([_SCHEMA.field(name) for name in columns])
        made = self._columns(rows)
        arrays = [_cast(made[field.name](), field.type) for field in schema]
        return pa.Table.from_arrays(arrays, schema=schema)

    def write_parquet(self, path: Path) -> None:
        """Write the table, ROW_GROUP rows at a time."""
        with pq.ParquetWriter(path, _SCHEMA) as writer:
            for start in range(0, max(len(self), 1), ROW_GROUP):
                writer.write_table(self.to_table(rows=slice(start, start + ROW_GROUP)))

    def _columns(self, rows: slice) -> dict[str, Callable[[], pa.Array]]:
        """How each column of these rows is made: a million rows of all at once would be as large as the record."""
        now = {name: values[rows] for name, values in self._now.items()}
        running = {name: values[rows] for name, values in self._running.items()}
        count = running["num_records"]
        aum = np.where(count > 0, running["aum"], np.nan)
        unknown = np.isnan(aum)
        ambiguity = np.where(np.isnan(now["epsilon_linearised"]), now["entropy"], now["epsilon_linearised"])
        return {
            "example_id": lambda: self._example_ids[rows],
            "shard": lambda: self._shards[rows],
            "given_label": lambda: pa.array(self._given_labels[rows]),
            "clean_label": lambda: _known(self._clean_labels[rows]),
            "predicted_label": lambda: _known(self._predicted[rows]),
            "num_records": lambda: pa.array(count),
            "aum": lambda: _nullable(aum),
            "confidence": lambda: pa.array(running["confidence"], mask=unknown),
            "variability": lambda: pa.array(np.sqrt(running["squares"] / np.maximum(count, 1)), mask=unknown),
            "forgetting_events": lambda: pa.array(running["forgetting_events"]),
            "suspicion": lambda: _nullable(-aum),
            "ambiguity": lambda: _nullable(ambiguity),
            **{name: partial(_nullable, values) for name, values in now.items()},
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The running figures, as tensors; fit for torch.load(weights_only=True)."""
        return {name: torch.from_numpy(array.copy()) for name, array in self._running.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from the figures of a record of the same examples."""
        for name, array in self._running.items():
            if name not in state or tuple(state[name].shape) != array.shape:
                raise ValueError(f"the saved record has no '{name}' for {len(self)} examples: it tracks others")
            array[:] = state[name].cpu().numpy()

    def _add_to_running(self, slots: NDArray[np.int64], columns: dict[str, NDArray[np.float64]]) -> None:
        running = self._running
        running["num_records"][slots] += 1
        count = running["num_records"][slots]
        running["aum"][slots] += (columns["margin"] - running["aum"][slots]) / count
        before = columns["p_given"] - running["confidence"][slots]
        running["confidence"][slots] += before / count
        running["squares"][slots] += before * (columns["p_given"] - running["confidence"][slots])
        learned = columns["predicted_label"] == self._given_labels[slots]
        running["forgetting_events"][slots] += running["learned"][slots] & ~learned
        running["learned"][slots] = learned


def _nullable(values: NDArray[np.float32] | NDArray[np.float64]) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))


def _known(labels: NDArray[np.int32]) -> pa.Array:
    return pa.array(labels, mask=labels < 0)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array if array.type == kind else array.cast(kind)
