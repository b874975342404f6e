"""Which jobs of a study are hopeless: asynchronous successive halving, as optuna's pruner decides it. Pure.

What was decided is not kept: it follows from what the jobs told, in the order they told it, and is worked out from that
anew. So a service that was killed, or another one, comes to the same decisions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import takewhile

import optuna
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection

from service.studies.records import EpochValue
from service.studies.study_spec import AshaSpec
from trainer.run_schema import LabelKind, evaluation_metric

MAX_EPOCHS = 10_000
"""No job has more."""

_LABELS: tuple[LabelKind, ...] = ("clean", "given")


def rungs(rule: AshaSpec) -> list[int]:
    """The epochs after which jobs are held against each other, in some bracket."""
    return list(takewhile(lambda epoch: epoch <= MAX_EPOCHS, _rungs_without_end(rule)))


def hopeless(rule: AshaSpec, told: Sequence[EpochValue]) -> frozenset[str]:
    """Ids of the jobs that are to be stopped, given what all jobs of a study told, in the order they told it.

    What a job tells after it was found hopeless counts no more, and a job is never stopped at its last epoch.
    """
    brackets = [_Bracket(rule, number) for number in range(rule.brackets)]
    stopped: set[str] = set()
    for value in told:
        figure = _figure(rule, value)
        if value.job_id in stopped or figure is None:
            continue
        falls_behind = brackets[value.index % rule.brackets].falls_behind(value.job_id, value.epoch, figure)
        if falls_behind and value.epoch < value.num_epochs:
            stopped.add(value.job_id)
    return frozenset(stopped)


class _Bracket:
    """Jobs that compete, as the trials of one of optuna's studies, which lives in memory."""

    def __init__(self, rule: AshaSpec, number: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of each study it makes
        pruner = SuccessiveHalvingPruner(rule.grace_epochs, rule.reduction_factor, min_early_stopping_rate=number)
        direction = StudyDirection.MAXIMIZE if rule.metric == "accuracy" else StudyDirection.MINIMIZE
        self._study = optuna.create_study(direction=direction, sampler=RandomSampler(), pruner=pruner)
        self._trials: dict[str, optuna.Trial] = {}

    def falls_behind(self, job_id: str, epoch: int, figure: float) -> bool:
        """Take in a figure; whether the job is not among those that go on."""
        if job_id not in self._trials:
            self._trials[job_id] = self._study.ask()
        trial = self._trials[job_id]
        trial.report(figure, epoch)
        return trial.should_prune()


def _rungs_without_end(rule: AshaSpec) -> Iterator[int]:
    epoch = rule.grace_epochs
    while True:
        yield epoch
        epoch *= rule.reduction_factor


def _figure(rule: AshaSpec, value: EpochValue) -> float | None:
    """Of val, by clean labels where all are known; never of test."""
    names = [evaluation_metric("val", labels, "mean", rule.metric) for labels in _LABELS]
    found = next((value.metrics[name] for name in names if name in value.metrics), None)
    return found if found is None or math.isfinite(found) else None
