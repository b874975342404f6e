"""How right predictions are, and how rightly sure. Sums merge over batches and ranks by addition; figures come last."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.run_schema import Evaluation, LabelKind, ReliabilityBin, Split

NUM_BINS = 15


class PredictionCounts:
    """Sums over predictions that all figures of an Evaluation follow from.

    `table` is one float64 tensor, so that ranks add theirs up with a single all-reduce; counts are exact up to 2⁵³.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self._num_classes = num_classes
        self.table = torch.zeros(2 + 3 * NUM_BINS + num_classes**2, dtype=torch.float64, device=device)
        """Σ nll, Σ Brier; for each bin count, Σ confidence, number right; confusion by label and prediction."""

    def add(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Count a batch; leave padding out beforehand."""
        log_p_BC = logits_BC.to(self.table).log_softmax(dim=1)
        p_BC = log_p_BC.exp()
        labels_B = labels_B.to(self.table.device)
        confidence_B, predicted_B = p_BC.max(dim=1)
        given_B = p_BC.gather(1, labels_B[:, None])[:, 0]
        totals, bins_N3, confusion = self._parts()
        totals[0] -= log_p_BC.gather(1, labels_B[:, None]).sum()
        totals[1] += (p_BC.square().sum(dim=1) - 2 * given_B + 1).sum()  # ‖p - onehot(y)‖²
        bin_B = (confidence_B * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        right_B = (predicted_B == labels_B).to(self.table)
        bins_N3.index_add_(0, bin_B, torch.stack([torch.ones_like(right_B), confidence_B, right_B], dim=1))
        confusion.index_add_(0, labels_B * self._num_classes + predicted_B, torch.ones_like(right_B))

    def evaluation(self, split: Split, labels: LabelKind, num_mc_samples: int | None = None) -> Evaluation:
        """The figures; `labels` says what the predictions were compared with, and `num_mc_samples`, if they are
        averages, over how many weight samples."""
        totals, bins_N3, confusion = (part.cpu() for part in self._parts())
        counts_N, confidence_N, right_N = bins_N3.unbind(dim=1)
        num_examples = int(counts_N.sum())
        if num_examples == 0:
            raise ValueError(f"split '{split}' has no readable example with a label to evaluate on")
        return Evaluation(
            split=split,
            labels=labels,
            predictor="mean" if num_mc_samples is None else "averaged",
            num_mc_samples=num_mc_samples,
            num_examples=num_examples,
            accuracy=float(right_N.sum()) / num_examples,
            nll=float(totals[0]) / num_examples,
            brier=float(totals[1]) / num_examples,
            ece=float((confidence_N - right_N).abs().sum()) / num_examples,
            reliability=tuple(_reliability_bin(i, row) for i, row in enumerate(bins_N3.tolist())),
            confusion=tuple(
                tuple(int(n) for n in row) for row in confusion.view(self._num_classes, self._num_classes).tolist()
            ),
        )

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the table: totals (2,), bins (NUM_BINS, 3), confusion (num_classes²,)."""
        totals, bins, confusion = torch.split(self.table, [2, 3 * NUM_BINS, self._num_classes**2])
        return totals, bins.view(NUM_BINS, 3), confusion


def _reliability_bin(index: int, row: list[float]) -> ReliabilityBin:
    count, confidence, right = row
    return ReliabilityBin(
        lower=index / NUM_BINS,
        upper=(index + 1) / NUM_BINS,
        num_examples=int(count),
        confidence=confidence / count if count else None,
        accuracy=right / count if count else None,
    )
