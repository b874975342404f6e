"""Sums over training steps, kept on the device so that no step waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from trainer.ranks import Ranks

# Positions in the vector of sums.
_POINT_LOSS, _NUM_CORRECT, _NUM_SEEN = range(3)


class Meters:
    """Loss since the last report and since the last journal point; right predictions and examples of the epoch."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks: Final = ranks
        self._live_loss = torch.zeros((), dtype=torch.float64, device=ranks.device)
        self._num_live_steps = 0
        self._sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
        self._num_point_steps = 0

    def add(self, loss: Tensor, logits_BC: Tensor, labels_B: Tensor, valid_B: Tensor) -> None:
        """Count a step. `loss` is this rank's share; the mean over ranks is the loss of the global batch.

        Sums over ranks are of the global batch, so that another number of ranks can take them up.
        """
        num_correct = ((logits_BC.argmax(dim=1) == labels_B) & valid_B).sum()
        self._live_loss += loss
        self._num_live_steps += 1
        share = loss.double() / self._ranks.world_size
        self._sums += torch.stack([share, num_correct.double(), valid_B.sum().double()])
        self._num_point_steps += 1

    def live_loss(self) -> float | None:
        """This rank's mean loss since the last call; waits for the device."""
        if not self._num_live_steps:
            return None
        loss = self._live_loss.item() / self._num_live_steps
        self._live_loss.zero_()
        self._num_live_steps = 0
        return loss

    def point_loss(self) -> float:
        """Mean loss of the global batches since the last call. Called by all ranks at the same step."""
        loss = self._ranks.sum_(self._sums[_POINT_LOSS].clone()).item() / max(1, self._num_point_steps)
        self._sums[_POINT_LOSS] = 0
        self._num_point_steps = 0
        return loss

    def epoch_accuracy(self) -> float:
        """Share of the epoch's examples that were predicted as labelled, over all ranks; starts the next epoch."""
        num_correct, num_seen = self._ranks.sum_(self._sums[_NUM_CORRECT:].clone()).tolist()
        self._sums[_NUM_CORRECT:] = 0
        return float(num_correct / max(1.0, num_seen))

    def state_dict(self) -> dict[str, Any]:
        """The sums over all ranks. Called by all ranks at the same step.

        They move to rank 0, so that a run that went on from here and one that was taken up again add the same floats
        in the same order.
        """
        self._ranks.sum_(self._sums)
        state = {"sums": self._sums.cpu().clone(), "num_point_steps": self._num_point_steps}
        self._leave_to_main()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the saved meters stood."""
        self._sums.copy_(state["sums"])
        self._num_point_steps = state["num_point_steps"]
        self._leave_to_main()

    def _leave_to_main(self) -> None:
        if not self._ranks.is_main:
            self._sums.zero_()
