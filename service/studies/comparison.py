"""The points of a study compared, from what their jobs left behind. Pure.

A job counts by its last evaluated epoch: choosing the best epoch by val would favour whoever is evaluated more often. A
point is chosen by val, by the weights: by test it would be chosen with hindsight. The prediction averaged over weight
samples stands beside where it is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from service.jobs.records import JobRecord
from service.jobs.states import LIVE_STATES, JobState
from service.results.headlines import Headline, Headlines
from service.studies.expansion import points_of
from service.studies.records import StudyRecord
from service.studies.states import EARLY_STOPPED
from service.study_schemas import FigureSpreads, PointComparison, SplitComparison, Spread, StudyComparison
from trainer.run_schema import Split


@dataclass(frozen=True)
class ComparedJob:
    """A job of a study, with what it left behind."""

    job: JobRecord
    headlines: Headlines | None
    """Of its newest evaluation; None where it has none."""


def compare(study: StudyRecord, jobs: Sequence[ComparedJob]) -> StudyComparison:
    """All points and the best of them, of a study's jobs in its order."""
    changes = dict(enumerate(points_of(study.spec)))
    groups: dict[str, list[ComparedJob]] = {}
    for entry in jobs:
        groups.setdefault(entry.job.spec.model_dump_json(exclude={"name", "seed"}), []).append(entry)
    points = [_point(changes.get(group[0].job.study_index or 0, {}), group) for group in groups.values()]
    return StudyComparison(
        study_id=study.id,
        is_final=not any(point.num_live for point in points),
        best=_best(points),
        points=points,
    )


def spread(values: Iterable[float]) -> Spread:
    """Median and spread of at least one value; quartiles are interpolated linearly."""
    ordered = sorted(values)
    q1, median, q3 = (float(q) for q in np.percentile(ordered, [25, 50, 75]))
    return Spread(num_seeds=len(ordered), median=median, min=ordered[0], max=ordered[-1], q1=q1, q3=q3)


def _point(change: Mapping[str, JsonValue], group: Sequence[ComparedJob]) -> PointComparison:
    spec = group[0].job.spec
    kinds = [(entry.job.state, entry.job.reason) for entry in group]
    states = [state for state, _ in kinds]
    told = [entry.headlines for entry in group if entry.headlines is not None and _counts(entry.job)]
    epochs = [headlines.epoch for headlines in told]
    return PointComparison(
        point={path: value for path, value in change.items() if path != "seed"},
        manifest=spec.data.manifest,
        corruption=spec.data.corruption,
        method=spec.method.kind,
        target=spec.target.kind,
        job_ids=[entry.job.id for entry in group],
        num_jobs=len(group),
        num_succeeded=states.count(JobState.SUCCEEDED),
        num_failed=states.count(JobState.FAILED),
        num_cancelled=states.count(JobState.CANCELLED),
        num_early_stopped=kinds.count(EARLY_STOPPED),
        num_live=sum(state in LIVE_STATES for state in states),
        epochs=(min(epochs), max(epochs)) if epochs else None,
        val=_split("val", told),
        test=_split("test", told),
    )


def _counts(job: JobRecord) -> bool:
    """Whether a job's figures are its point's: not those of one that failed, or that somebody cancelled."""
    return job.state in LIVE_STATES | {JobState.SUCCEEDED} or (job.state, job.reason) == EARLY_STOPPED


def _split(split: Split, told: Sequence[Headlines]) -> SplitComparison | None:
    by_weights = [headlines.splits[split] for headlines in told if split in headlines.splits]
    if not by_weights:
        return None
    averaged = [headlines.averaged[split] for headlines in told if split in headlines.averaged]
    return SplitComparison(
        labels=by_weights[0].labels,
        mean=_figures(by_weights),
        averaged=_figures(averaged) if averaged else None,
    )


def _figures(told: Sequence[Headline]) -> FigureSpreads:
    return FigureSpreads(
        accuracy=spread(headline.accuracy for headline in told),
        nll=spread(headline.nll for headline in told),
        brier=spread(headline.brier for headline in told),
        ece=spread(headline.ece for headline in told),
    )


def _best(points: Sequence[PointComparison]) -> list[PointComparison]:
    best: dict[tuple[str, str, str, str], PointComparison] = {}
    for point in sorted((point for point in points if point.val is not None), key=_rank):  # stable: equal ones in order
        corruption = "" if point.corruption is None else point.corruption.model_dump_json()
        best.setdefault((point.manifest, corruption, point.method, point.target), point)
    return list(best.values())


def _rank(point: PointComparison) -> tuple[float, float]:
    assert point.val is not None, "only points with figures are ranked"
    return -point.val.mean.accuracy.median, point.val.mean.nll.median
