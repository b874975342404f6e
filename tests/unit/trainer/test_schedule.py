"""The learning rate by step."""

import pytest

from trainer.schedule import lr_factor
from trainer.spec import ScheduleSpec


def factors(schedule: ScheduleSpec, steps_per_epoch: int) -> list[float]:
    return [lr_factor(schedule, step, steps_per_epoch) for step in range(schedule.epochs * steps_per_epoch)]


def test_cosine_falls_from_one_towards_zero() -> None:
    values = factors(ScheduleSpec(epochs=4), 10)
    assert values[0] == 1
    assert values[20] == pytest.approx(0.5)
    assert 0 < values[-1] < 0.01
    assert values == sorted(values, reverse=True)


def test_warmup_rises_linearly_and_moves_at_once() -> None:
    values = factors(ScheduleSpec(epochs=4, warmup_epochs=0.5), 10)
    assert values[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_step_divides_by_ten_after_each_milestone() -> None:
    values = factors(ScheduleSpec(epochs=3, decay="step", milestones=(1, 2)), 2)
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_step_without_milestones_is_constant() -> None:
    assert set(factors(ScheduleSpec(epochs=3, decay="step"), 2)) == {1}
