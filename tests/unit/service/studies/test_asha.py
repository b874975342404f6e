"""Early stopping: the rule as its paper states it, with Ray Tune's own implementation of it as an oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers.async_hyperband import _Bracket
from ray.tune.schedulers.trial_scheduler import TrialScheduler

from service.studies.asha import MAX_EPOCHS, hopeless, rungs
from service.studies.records import EpochValue
from service.studies.study_spec import AshaSpec
from trainer.spec import ScheduleSpec

FIGURES = st.floats(0, 1)


def told(index: int, epoch: int, figure: float, name: str = "val_given/accuracy", num_epochs: int = 1000) -> EpochValue:
    return EpochValue(f"job-{index}", index, epoch, num_epochs, {"train/loss": 1.0, name: figure})


def rule(**changes: object) -> AshaSpec:
    return AshaSpec.model_validate(changes)


@given(st.integers(1, 20), st.integers(2, 6), st.integers(0, 3), st.integers(1, 1000))
def test_rungs_are_those_of_ray_tune(grace: int, factor: int, bracket: int, max_epochs: int) -> None:
    theirs = sorted(milestone for milestone, _ in _Bracket(grace, max_epochs * 1000, factor, bracket)._rungs)
    theirs = [milestone for milestone in theirs if milestone <= MAX_EPOCHS]
    ours = rungs(rule(grace_epochs=grace, reduction_factor=factor))
    assert ours[bracket : bracket + len(theirs)] == theirs
    assert all(ours[-1] * factor > MAX_EPOCHS and epoch <= MAX_EPOCHS for epoch in ours)


def test_no_job_has_more_epochs_than_rungs_reach() -> None:
    assert any(getattr(entry, "le", None) == MAX_EPOCHS for entry in ScheduleSpec.model_fields["epochs"].metadata)


@given(st.lists(FIGURES, max_size=40), st.integers(1, 3), st.integers(2, 5))
def test_of_those_that_came_as_far_the_best_go_on(figures: Sequence[float], grace: int, factor: int) -> None:
    asha = rule(grace_epochs=grace, reduction_factor=factor)
    theirs = _Bracket(grace, 1000, factor, 0)
    stopped = hopeless(asha, [told(i, grace, figure) for i, figure in enumerate(figures)])
    for i, figure in enumerate(figures):
        num_better = sum(other > figure for other in figures[:i])
        num_that_go_on = max(1, (i + 1) // factor)
        ours_stops = f"job-{i}" in stopped
        assert ours_stops == (num_better >= num_that_go_on)
        ray_stops = theirs.on_result(SimpleNamespace(trial_id=str(i)), grace, figure) == TrialScheduler.STOP
        assert ours_stops or not ray_stops  # Ray interpolates its cutoff: it lets a few more go on, ...
        assert ours_stops == ray_stops or num_better <= num_that_go_on + 1  # ... the next in rank


@given(st.lists(st.tuples(st.integers(0, 9), FIGURES), max_size=60), st.integers(1, 3), st.data())
def test_what_was_decided_is_decided_again(
    figures: list[tuple[int, float]], num_brackets: int, data: st.DataObject
) -> None:
    asha = rule(reduction_factor=2, brackets=num_brackets)
    epochs = dict.fromkeys(range(10), 0)
    history = []
    for index, figure in figures:
        epochs[index] += 1
        history.append(told(index, epochs[index], figure))
    cut = data.draw(st.integers(0, len(history)))
    earlier = hopeless(asha, history[:cut])
    assert earlier <= hopeless(asha, history)
    later = [value for value in history[cut:] if value.job_id not in earlier]
    assert hopeless(asha, history[:cut] + later) == hopeless(asha, history)


def test_whole_runs_narrow_down_to_the_best() -> None:
    alive = list(range(16))
    history: list[EpochValue] = []
    for epoch in range(1, 17):
        history += [told(i, epoch, (i + 1) / 20) for i in reversed(alive)]
        stopped = hopeless(rule(reduction_factor=4), history)
        alive = [i for i in alive if f"job-{i}" not in stopped]
    assert alive == [15]


def test_the_better_may_come_later() -> None:
    stopped = hopeless(rule(reduction_factor=2), [told(0, 1, 0.5), told(1, 1, 0.4), told(2, 1, 0.6), told(3, 1, 0.45)])
    assert stopped == {"job-1", "job-3"}


def test_nll_counts_the_other_way() -> None:
    history = [told(i, 1, figure, "val_clean/nll") for i, figure in enumerate((0.5, 0.4, 0.6))]
    assert hopeless(rule(metric="nll"), history) == {"job-2"}


def test_clean_labels_count_before_given_ones_and_test_never() -> None:
    both = {"val_given/accuracy": 0.1, "val_clean/accuracy": 0.9, "test_clean/accuracy": 0.1}
    history = [told(0, 1, 0.5, "val_clean/accuracy"), EpochValue("job-1", 1, 1, 9, both)]
    assert hopeless(rule(), history) == frozenset()
    only_test = [told(i, 1, 1 - i / 10, "test_clean/accuracy") for i in range(5)]
    assert hopeless(rule(), only_test) == frozenset()


def test_what_is_no_number_is_passed_over() -> None:
    assert hopeless(rule(), [told(0, 1, 0.5), told(1, 1, math.nan), told(2, 1, math.inf)]) == frozenset()


def test_a_job_that_has_finished_is_not_stopped() -> None:
    history = [told(0, 4, 0.9), told(1, 4, 0.1, num_epochs=4), told(2, 4, 0.1)]
    assert hopeless(rule(grace_epochs=4), history) == {"job-2"}


@pytest.mark.parametrize(("index", "first_rung"), [(0, 2), (1, 6), (2, 2), (3, 6)])
def test_brackets_are_dealt_out_in_turn(index: int, first_rung: int) -> None:
    asha = rule(grace_epochs=2, reduction_factor=3, brackets=2)
    best = [told(4 + i, first_rung, 0.9) for i in range(2)]
    before = [told(index, epoch, 0.1) for epoch in range(1, first_rung)]
    assert hopeless(asha, best + before) == frozenset()
    assert hopeless(asha, [*best, *before, told(index, first_rung, 0.1)]) == {f"job-{index}"}
