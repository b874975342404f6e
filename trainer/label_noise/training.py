"""Label noise that training gives away: antithetic pairs of a training step are Eq. 20 for each of its examples.

A step that takes its gradients at m ± σe has p₊ and p₋ of its batch in hand, so that (p₊ - p₋)/2 costs no further pass,
and every training example is measured in every epoch, not only the tracked ones. It is not what recording measures with
the model held still after the epoch:

- the mean and σ are those of the step at which the example came up, so an epoch's histogram mixes early and late ones;
- the picture is the augmented one that the step saw, and BatchNorm works with the batch's own statistics, other ones at
  m + σe than at m - σe;
- there is one visit an epoch, of num_mc_samples/2 draws: one draw with the usual two samples, whose ‖ε‖ scatters about
  the root mean square that many draws would give;
- under precision bf16 logits are rounded to 8 bits, so that norms below about 0.01 are mostly rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.label_noise.estimators import half_difference
from trainer.label_noise.histogram import ClassHistogram
from trainer.ranks import Ranks


def epsilon_sq_of_pairs(logits: Sequence[Tensor]) -> Tensor:
    """Mean over pairs of ‖(p₊ - p₋)/2‖₂², (B,) float64, of the logits (B, C) at m+σe, m-σe, m+σe', m-σe' and so on."""
    assert len(logits) % 2 == 0, "samples come in pairs"
    p = [logits_BC.double().softmax(dim=1) for logits_BC in logits]
    squares = [half_difference(*pair).square().sum(dim=1) for pair in zip(p[::2], p[1::2], strict=True)]
    return torch.stack(squares).mean(dim=0)


@dataclass(frozen=True)
class EpochNoise:
    """‖ε‖₂ as an epoch's training steps have measured it, over all ranks; on ranks other than 0 empty."""

    histogram: ClassHistogram
    """Of all training examples that steps saw."""
    tracked_N: NDArray[np.float32]
    """Of each slot of the record; NaN where no step came by."""


class TrainingNoise:
    """‖ε‖₂ of the epoch under way as steps report it: by class over all examples, and of each tracked one.

    Adding waits for nothing. Memory on the device: 8 bytes a tracked example, and 4 on the CPU for each training one.
    """

    def __init__(self, num_classes: int, num_train: int, tracked_rows: NDArray[np.int64], ranks: Ranks) -> None:
        """`tracked_rows[i]` is the row in the training table of the example in slot i of the record."""
        self._ranks: Final = ranks
        self._nowhere = len(tracked_rows)
        slots = torch.full((num_train,), self._nowhere, dtype=torch.int32)
        slots[torch.from_numpy(tracked_rows)] = torch.arange(len(tracked_rows), dtype=torch.int32)
        self._slot_of_row: Final = slots
        self._histogram: Final = ClassHistogram(num_classes, ranks.device)
        self._tracked: Final = torch.zeros(2, len(tracked_rows) + 1, device=ranks.device)
        """‖ε‖² and whether it was measured, by slot; the last column is for what belongs to none."""
        self._is_fed = False

    def add(self, epsilon_sq_B: Tensor, labels_B: Tensor, valid_B: Tensor, rows_B: Tensor) -> None:
        """Count a step's examples. All on the device but `rows_B`, their rows in the training table.

        Where ‖ε‖ is not finite, because the step diverged and was skipped, nothing is counted.
        """
        self._is_fed = True
        counted_B = valid_B & epsilon_sq_B.isfinite()
        self._histogram.add(epsilon_sq_B.sqrt(), labels_B, counted_B)
        slots_B = self._slot_of_row[rows_B.clamp(min=0)].to(counted_B.device, torch.int64, non_blocking=True)
        slots_B = torch.where(counted_B, slots_B, self._nowhere)
        self._tracked[0, slots_B] = epsilon_sq_B.to(self._tracked)
        self._tracked[1, slots_B] = 1

    def over_ranks(self) -> EpochNoise | None:
        """What the epoch has measured so far, on rank 0; None if no step reports ‖ε‖. Called by all ranks alike."""
        if not self._is_fed:
            return None
        self._move_to_main()
        square_N, count_N = self._tracked[:, :-1].cpu()
        norms_N: NDArray[np.float32] = torch.where(count_N > 0, square_N.sqrt(), torch.nan).numpy()
        return EpochNoise(self._histogram, norms_N)

    def start_epoch(self) -> None:
        """Forget the epoch before."""
        self._histogram.table.zero_()
        self._tracked.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The epoch so far, over all ranks; empty if no step reports ‖ε‖. Called by all ranks at the same step."""
        if not self._is_fed:
            return {}
        self._move_to_main()
        return {"histogram": self._histogram.table.cpu().clone(), "tracked": self._tracked[:, :-1].cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where the saved one stood, on rank 0."""
        self.start_epoch()
        self._is_fed = bool(state)
        if state and self._ranks.is_main:
            self._histogram.table.copy_(state["histogram"])
            self._tracked[:, :-1] = state["tracked"].to(self._tracked)

    def _move_to_main(self) -> None:
        """Add all ranks' up on rank 0, and leave nothing on the others.

        So a run that goes on and one that is taken up from a checkpoint add the same floats in the same order.
        """
        for table in (self._histogram.table, self._tracked):
            self._ranks.sum_(table)
            if not self._ranks.is_main:
                table.zero_()
