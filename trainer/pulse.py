"""When to tell the supervisor where the run stands, and when all ranks stop together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

from trainer.meters import Meters
from trainer.ranks import Ranks
from trainer.run_schema import Progress
from trainer.supervisor import ORDERS, Order, Supervisor

REPORT_INTERVAL_S = 1.0
STOP_CHECK_INTERVAL_S = 0.5
MAX_CALLS_BETWEEN_CHECKS = 64

Phase = Literal["starting", "training", "evaluating", "recording", "finishing"]


@dataclass
class _Since:
    """Counts since a moment."""

    time_s: float
    num_steps: int = 0
    num_images: int = 0

    def images_per_s(self, now_s: float) -> float:
        return self.num_images / max(1e-9, now_s - self.time_s)


@dataclass(frozen=True)
class _Check:
    """When rank 0 was asked last."""

    time_s: float
    num_calls: int

    def calls_until_next(self, before: _Check) -> int:
        """As many as there were in STOP_CHECK_INTERVAL_S since the check before."""
        calls_per_s = (self.num_calls - before.num_calls) / max(1e-9, self.time_s - before.time_s)
        return min(MAX_CALLS_BETWEEN_CHECKS, max(1, int(STOP_CHECK_INTERVAL_S * calls_per_s)))


class Pulse:
    """Progress reports about once a second, and the ranks' agreement to stop at one step."""

    def __init__(self, supervisor: Supervisor, ranks: Ranks, *, num_epochs: int, num_steps: int) -> None:
        self._supervisor, self._ranks = supervisor, ranks
        self._num_epochs, self._num_steps = num_epochs, num_steps
        now_s = time.perf_counter()
        self._run, self._epoch, self._window = _Since(now_s), _Since(now_s), _Since(now_s)
        self._loss: float | None = None
        self._rate: float | None = None
        self._order: Order = "continue"
        self._num_calls = self._next_check = 0
        self._checked: _Check | None = None

    def enter(self, phase: Phase, *, epoch: int, step: int) -> None:
        """Report that a phase begins; "training" begins the epoch's clock. Called by all ranks."""
        now_s = time.perf_counter()
        self._next_check, self._checked = 0, None  # what a phase does between two calls takes another time
        if phase == "training":
            self._epoch, self._window = _Since(now_s), _Since(now_s)
            if not self._run.num_steps:
                self._run = _Since(now_s)
        self._report(phase, epoch, step, now_s)

    def count_step(self, num_images: int, meters: Meters, *, epoch: int, step: int) -> None:
        """Count a step of `num_images` over all ranks, and report if the last report is a second old."""
        for since in (self._run, self._epoch, self._window):
            since.num_steps += 1
            since.num_images += num_images
        now_s = time.perf_counter()
        if self._ranks.is_main and self._run.num_steps == 1:
            self._report("training", epoch, step, now_s)
        if self._ranks.is_main and now_s - self._window.time_s >= REPORT_INTERVAL_S:
            self._loss = meters.live_loss()
            self._rate = self._window.images_per_s(now_s)
            self._window = _Since(now_s)
            self._report("training", epoch, step, now_s)

    def epoch_ended(self, loss: float | None) -> None:
        """Report the epoch's own figures from here on: it may have been shorter than a report's interval."""
        self._loss = loss
        self._rate = self.epoch_images_per_s()

    def epoch_images_per_s(self) -> float:
        """Throughput since the epoch's training began, over all ranks."""
        return self._epoch.images_per_s(time.perf_counter())

    def agreed_order(self) -> Order:
        """What all ranks do now; called by all before each step, and before each chunk and weight sample at an epoch's
        end. Once it is to end, it stays so.

        Rank 0 says what it heard and after how many calls to ask again: asking costs little however short a step.
        """
        self._num_calls += 1
        if self._order != "continue" or self._num_calls < self._next_check:
            return self._order
        now = _Check(time.perf_counter(), self._num_calls)
        interval = 1 if self._checked is None else now.calls_until_next(self._checked)
        message = self._ranks.broadcast(torch.tensor([ORDERS.index(self._supervisor.order), interval]))
        number, interval = message.tolist()
        self._order = ORDERS[number]
        self._next_check, self._checked = self._num_calls + interval, now
        return self._order

    def _report(self, phase: Phase, epoch: int, step: int, now_s: float) -> None:
        if not self._ranks.is_main:
            return
        step_s = (now_s - self._run.time_s) / self._run.num_steps if self._run.num_steps else None
        progress = Progress(
            phase=phase,
            epoch=epoch,
            num_epochs=self._num_epochs,
            step=step,
            num_steps=self._num_steps,
            images_per_s=self._rate,
            eta_s=None if step_s is None else step_s * (self._num_steps - step),
            loss=self._loss,
        )
        self._supervisor.progress(progress)
