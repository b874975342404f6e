"""What is kept of each tracked example: this epoch's figures, and what the recorded epochs add up to.

Ranks measure (`example_rows`), rank 0 collects the rows in any order and keeps the record. Memory: 32 bytes an example
for the epoch and 33 for the running figures, 65 MB for a million; names and labels come on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
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
    logits_BC = estimate.logits_mean_BC.double()
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
        example_ids: Sequence[str],
        shards: Sequence[str],
        given_labels: NDArray[np.int64],
        clean_labels: NDArray[np.int64],
    ) -> None:
        """Slot i of the record is the i-th of these examples; a clean label of -1 is unknown."""
        n = len(example_ids)
        if not len(shards) == len(given_labels) == len(clean_labels) == n:
            raise ValueError(f"example_ids, shards, given_labels and clean_labels must have the same length, {n}")
        self._example_ids = list(example_ids)
        self._shards = list(shards)
        self._given_labels = np.asarray(given_labels, dtype=np.int32)
        self._clean_labels = np.asarray(clean_labels, dtype=np.int32)
        self._now: dict[str, NDArray[np.float32]] = {}
        self._predicted = np.empty(n, dtype=np.int32)
        self._running: dict[str, NDArray[Any]] = {
            "num_records": np.zeros(n, dtype=np.int32),
            "aum": np.zeros(n, dtype=np.float64),
            "confidence": np.zeros(n, dtype=np.float64),
            "squares": np.zeros(n, dtype=np.float64),  # Σ (p - mean p)², by Welford's update
            "learned": np.zeros(n, dtype=np.bool_),  # predicted as given at the last record
            "forgetting_events": np.zeros(n, dtype=np.int32),
        }
        self.start_epoch()

    def __len__(self) -> int:
        return len(self._example_ids)

    def start_epoch(self) -> None:
        """Forget the figures of the epoch before; the running ones stay."""
        self._predicted.fill(-1)
        self._now = {name: np.full(len(self), np.nan, dtype=np.float32) for name in MEASURES}

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

    def to_table(self) -> pa.Table:
        """One row for each tracked example, in slot order: EXAMPLE_COLUMNS."""
        running, now = self._running, self._now
        count = running["num_records"]
        never = (count == 0) | np.isnan(running["aum"])
        columns = {
            "example_id": pa.array(self._example_ids, pa.string()),
            "shard": pa.array(self._shards, pa.string()).dictionary_encode(),
            "given_label": self._given_labels,
            "clean_label": pa.array(self._clean_labels, mask=self._clean_labels < 0),
            "predicted_label": pa.array(self._predicted, mask=self._predicted < 0),
            "num_records": count,
            "aum": pa.array(running["aum"], mask=never),
            "confidence": pa.array(running["confidence"], mask=never),
            "variability": pa.array(np.sqrt(running["squares"] / np.maximum(count, 1)), mask=never),
            "forgetting_events": running["forgetting_events"],
            "suspicion": pa.array(-running["aum"], mask=never),
        }
        for name in MEASURES:
            columns[name] = pa.array(now[name], mask=np.isnan(now[name]))
        epsilon = now["epsilon_linearised"]
        ambiguity = np.where(np.isnan(epsilon), now["entropy"], epsilon)
        columns["ambiguity"] = pa.array(ambiguity, mask=np.isnan(ambiguity))
        arrays = [_cast(columns[field.name], field.type) for field in _SCHEMA]
        return pa.Table.from_arrays(arrays, schema=_SCHEMA)

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


def _cast(column: pa.Array | NDArray[np.int32], kind: pa.DataType) -> pa.Array:
    array = column if isinstance(column, pa.Array) else pa.array(column)
    return array if array.type == kind else array.cast(kind)
