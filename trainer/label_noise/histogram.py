"""Histograms of ‖ε‖₂ between fixed log-spaced edges: comparable over epochs and jobs, and mergeable by addition.

A quantile read from one is off by a factor of at most BIN_RATIO (1.21) from the example at that rank, for values inside
the edges: both lie in the same bin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.run_schema import QUANTILES, Estimator, Histogram, LabelNoiseRecord

NUM_BINS = 98
EDGES: tuple[float, ...] = tuple(np.geomspace(1e-8, math.sqrt(2), NUM_BINS + 1).tolist())
"""From 1e-8 to √2, the longest that a difference of two probability vectors can be; 12 bins a decade."""
BIN_RATIO = EDGES[1] / EDGES[0]


def counts(values: Tensor) -> Tensor:
    """int64 counts, (NUM_BINS,), of values of any shape; what lies outside the edges is in the first or last bin."""
    return torch.bincount(_bins(values.flatten(), _inner_edges(values.device)), minlength=NUM_BINS)


def to_histogram(bin_counts: Tensor, total: float) -> Histogram:
    """The published form of `counts`; `total` is the sum of the values."""
    counts_B = bin_counts.to("cpu", torch.int64).numpy()
    num_examples = int(counts_B.sum())
    return Histogram(
        edges=EDGES,
        counts=tuple(counts_B.tolist()),
        num_examples=num_examples,
        mean=total / num_examples if num_examples else 0.0,
        quantiles={f"p{q}": quantile(counts_B, q / 100) for q in QUANTILES} if num_examples else {},
    )


def quantile(counts_B: NDArray[np.int64], q: float) -> float:
    """The q-quantile, interpolated on the log scale inside the bin of the ⌈qn⌉-th smallest of n values."""
    below_B = np.cumsum(counts_B)
    rank = max(q * float(below_B[-1]), 1.0)
    index = int(np.searchsorted(below_B, math.ceil(rank - 1e-9)))  # 1e-9: 0.07 * 100 is a little more than 7
    before = float(below_B[index - 1]) if index else 0.0
    share = min(max((rank - before) / float(counts_B[index]), 0.0), 1.0)
    return float(EDGES[index] * (EDGES[index + 1] / EDGES[index]) ** share)


class ClassHistogram:
    """A histogram of ‖ε‖₂ for each given class, as one tensor that ranks add up with a single all-reduce."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.table = torch.zeros(num_classes, NUM_BINS + 1, dtype=torch.float64, device=device)
        """(class, bin): counts, exact up to 2⁵³; the last column is the sum of the values."""
        self._inner_edges = _inner_edges(device)

    def add(self, values_B: Tensor, given_labels_B: Tensor, counted_B: Tensor) -> None:
        """Count those ‖ε‖₂ of a batch that `counted_B` says, by their given labels; never waits for the device."""
        values_B = torch.where(counted_B, values_B.to(self.table), 0)
        bins_B = _bins(values_B, self._inner_edges)
        self.table.index_put_((given_labels_B, bins_B), counted_B.to(self.table), accumulate=True)
        self.table[:, NUM_BINS].index_put_((given_labels_B,), values_B, accumulate=True)

    def per_class(self) -> tuple[Histogram, ...]:
        """The published form, one a class."""
        return tuple(to_histogram(row[:NUM_BINS], float(row[NUM_BINS])) for row in self.table.cpu())

    def overall(self) -> Histogram:
        """The published form of all classes together."""
        row = self.table.sum(dim=0).cpu()
        return to_histogram(row[:NUM_BINS], float(row[NUM_BINS]))

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not bool(self.table[:, :NUM_BINS].any())


def noise_record(
    histograms: Mapping[Estimator, ClassHistogram],
    *,
    epoch: int,
    step: int,
    classes: tuple[str, ...],
    num_examples: int,
) -> LabelNoiseRecord:
    """The record of an epoch with `num_examples` tracked examples; estimators that counted nothing are left out."""
    counted = {estimator: histogram for estimator, histogram in histograms.items() if not histogram.is_empty}
    return LabelNoiseRecord(
        epoch=epoch,
        step=step,
        classes=classes,
        num_examples=num_examples,
        overall={estimator: histogram.overall() for estimator, histogram in counted.items()},
        per_class={estimator: histogram.per_class() for estimator, histogram in counted.items()},
    )


def _inner_edges(device: torch.device | str) -> Tensor:
    return torch.tensor(EDGES[1:-1], dtype=torch.float64, device=device)


def _bins(values_B: Tensor, inner_edges: Tensor) -> Tensor:
    """Index of the bin [EDGES[i], EDGES[i+1]) of each value, clamped to the first and last."""
    return torch.bucketize(values_B.double().contiguous(), inner_edges, right=True)
