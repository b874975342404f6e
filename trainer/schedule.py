"""The learning rate at each step: a pure function, so that resuming needs no state."""

from __future__ import annotations

import math

from trainer.spec import ScheduleSpec


def lr_factor(schedule: ScheduleSpec, step: int, steps_per_epoch: int) -> float:
    """Factor on the method's learning rate at optimizer step `step` (from 0).

    Warm-up over W = warmup_epochs · steps_per_epoch steps: (step + 1) / W, so that the first step already moves. Then
    `cosine`: (1 + cos(π t)) / 2 with t the share of the remaining steps done; or `step`: 0.1 for each milestone passed.
    """
    num_steps = schedule.epochs * steps_per_epoch
    num_warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < num_warmup:
        return (step + 1) / num_warmup
    match schedule.decay:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))
        case "step":
            num_passed = sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
            return float(0.1**num_passed)
