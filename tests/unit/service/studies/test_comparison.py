"""Comparing a study's points, held against numbers worked out by hand."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from service.jobs.records import JobRecord
from service.jobs.states import JobState, Reason
from service.results.headlines import Headline, Headlines
from service.studies.comparison import ComparedJob, compare, spread
from service.studies.comparison_csv import comparison_csv
from service.studies.expansion import expand
from service.studies.records import StudyRecord
from service.studies.study_spec import StudySpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
END = {
    "SUCCEEDED": (JobState.SUCCEEDED, Reason.RESULT_COMPLETE),
    "FAILED": (JobState.FAILED, Reason.NON_FINITE_LOSS),
    "RUNNING": (JobState.RUNNING, Reason.FIRST_HEARTBEAT),
    "QUEUED": (JobState.QUEUED, Reason.SUBMITTED),
    "EARLY": (JobState.CANCELLED, Reason.EARLY_STOPPED),
    "CANCELLED": (JobState.CANCELLED, Reason.USER_CANCELLED),
}


def study(**changes: Any) -> StudyRecord:
    spec = {"name": "study", "base": {"data": {"manifest": "/m"}, "method": {"kind": "sgd"}}, **changes}
    return StudyRecord("s" * 26, "default", spec["name"], NOW, None, StudySpec.model_validate(spec))


def figures(accuracy: float, nll: float = 1.0) -> Headline:
    return Headline(labels="clean", accuracy=accuracy, nll=nll, brier=0.5, ece=0.1)


def told(val: float, test: float | None = None, *, nll: float = 1.0, averaged: float | None = None) -> Headlines:
    splits = {"val": figures(val, nll)} | ({} if test is None else {"test": figures(test)})
    return Headlines(epoch=10, splits=splits, averaged={} if averaged is None else {"val": figures(averaged)})


def jobs_of(record: StudyRecord, *ends: tuple[str, Headlines | None]) -> list[ComparedJob]:
    planned = expand(record.spec)
    assert len(planned) == len(ends)
    found = []
    for job, (end, headlines) in zip(planned, ends, strict=True):
        state, reason = END[end]
        stored = JobRecord(
            id=f"job-{job.index}",
            tenant="default",
            spec=job.spec,
            state=state,
            state_since=NOW,
            reason=reason,
            message=None,
            attempt=1,
            num_failures=0,
            progress=None,
            mlflow_run_id=None,
            mlflow_experiment_id=None,
            created_at=NOW,
            updated_at=NOW,
            started_at=None,
            ended_at=None,
            study_id=record.id,
            study_index=job.index,
        )
        found.append(ComparedJob(stored, headlines))
    return found


def test_median_and_spread() -> None:
    four = spread([4.0, 1.0, 2.0, 8.0])
    assert (four.num_seeds, four.median, four.min, four.max, four.q1, four.q3) == (4, 3.0, 1.0, 8.0, 1.75, 5.0)
    one = spread([0.5])
    assert (one.num_seeds, one.median, one.min, one.max, one.q1, one.q3) == (1, 0.5, 0.5, 0.5, 0.5, 0.5)


def test_seeds_of_a_point_are_one_row_and_the_median_decides() -> None:
    record = study(grid={"method.lr": [0.1, 0.2]}, seeds=[0, 1, 2])
    first = [("SUCCEEDED", told(val, test)) for val, test in ((0.70, 0.1), (0.80, 0.2), (0.99, 0.3))]
    second = [("SUCCEEDED", told(val, test)) for val, test in ((0.81, 0.9), (0.82, 0.8), (0.10, 0.7))]
    found = compare(record, jobs_of(record, *first, *second))
    assert [point.point for point in found.points] == [{"method.lr": 0.1}, {"method.lr": 0.2}]
    assert found.is_final
    [best] = found.best
    assert best == found.points[1]
    assert best.val is not None
    assert best.test is not None
    assert best.val.mean.accuracy.median == 0.81
    assert (best.test.mean.accuracy.min, best.test.mean.accuracy.max) == (0.7, 0.9)
    assert best.test.mean.accuracy.q1 == pytest.approx(0.75)
    assert best.job_ids == ["job-3", "job-4", "job-5"]
    assert (best.num_jobs, best.num_succeeded, best.epochs) == (3, 3, (10, 10))


def test_each_method_target_and_data_set_has_its_best() -> None:
    points = [
        {"method": {"kind": "ivon"}},
        {},
        {"target": {"kind": "smoothed", "rate": 0.1}},
        {"target": {"kind": "smoothed", "rate": 0.3}},
        {"data.manifest": "/other"},
        {"data.corruption": {"kind": "symmetric", "rate": 0.2}},
    ]
    record = study(points=points)
    ends = [("SUCCEEDED", told(val)) for val in (0.5, 0.6, 0.7, 0.65, 0.9, 0.3)]
    found = compare(record, jobs_of(record, *ends))
    best = [(point.manifest, point.method, point.target, point.point) for point in found.best]
    assert best == [
        ("/other", "sgd", "hard", points[4]),
        ("/m", "sgd", "smoothed", points[2]),
        ("/m", "sgd", "hard", points[1]),
        ("/m", "ivon", "hard", points[0]),
        ("/m", "sgd", "hard", points[5]),
    ]


def test_equal_accuracies_are_parted_by_nll_then_by_order() -> None:
    record = study(grid={"method.lr": [0.1, 0.2, 0.3]})
    ends = [("SUCCEEDED", told(0.5, nll=nll)) for nll in (2.0, 1.0, 1.0)]
    assert compare(record, jobs_of(record, *ends)).best[0].point == {"method.lr": 0.2}


def test_who_counts_and_who_does_not() -> None:
    record = study(seeds=list(range(6)))
    ends = [
        ("SUCCEEDED", told(0.6, 0.5)),
        ("RUNNING", told(0.4)),
        ("QUEUED", None),
        ("EARLY", told(0.2)),
        ("FAILED", told(0.99, 0.99)),
        ("CANCELLED", told(0.98, 0.98)),
    ]
    found = compare(record, jobs_of(record, *ends))
    [point] = found.points
    assert not found.is_final
    assert point.val is not None
    assert point.test is not None
    accuracy = point.val.mean.accuracy
    assert (accuracy.num_seeds, accuracy.min, accuracy.median, accuracy.max) == (3, 0.2, 0.4, 0.6)
    assert point.test.mean.accuracy.num_seeds == 1
    assert (point.num_jobs, point.num_succeeded, point.num_failed, point.num_live) == (6, 1, 1, 2)
    assert (point.num_cancelled, point.num_early_stopped) == (2, 1)


def test_without_figures_there_is_no_best_and_no_error() -> None:
    record = study(grid={"method.lr": [0.1, 0.2]})
    only_test = Headlines(epoch=3, splits={"test": figures(0.9)})
    found = compare(record, jobs_of(record, ("QUEUED", None), ("SUCCEEDED", only_test)))
    assert found.best == []
    assert [point.val for point in found.points] == [None, None]
    assert [point.epochs for point in found.points] == [None, (3, 3)]
    assert found.points[1].test is not None


def test_the_averaged_prediction_stands_beside_and_decides_nothing() -> None:
    points = [{"method": {"kind": "ivon", "lr": lr}} for lr in (0.1, 0.2)]
    record = study(points=points)
    ends = [("SUCCEEDED", told(0.6, averaged=0.61)), ("SUCCEEDED", told(0.5, averaged=0.9))]
    found = compare(record, jobs_of(record, *ends))
    assert found.best[0].point == points[0]
    assert found.best[0].val is not None
    assert found.best[0].val.averaged is not None
    assert found.best[0].val.averaged.accuracy.median == 0.61
    assert found.points[1].val is not None
    assert found.points[1].val.mean.accuracy.median == 0.5


def test_a_table_has_a_row_for_each_point_and_a_column_for_each_change() -> None:
    record = study(grid={"method.lr": [0.1, 0.2]}, points=[{"method": {"kind": "ivon"}}], seeds=[0, 1])
    ends = [("SUCCEEDED", told(0.6, 0.5))] * 2 + [("FAILED", None)] * 2 + [("EARLY", told(0.3, averaged=0.4))] * 2
    rows = list(csv.DictReader(io.StringIO(comparison_csv(compare(record, jobs_of(record, *ends))))))
    assert [row["is_best"] for row in rows] == ["true", "false", "true"]
    assert [row["point.method.lr"] for row in rows] == ["0.1", "0.2", ""]
    assert [row["point.method"] for row in rows] == ["", "", json.dumps({"kind": "ivon"})]
    assert [row["val.mean.accuracy.median"] for row in rows] == ["0.6", "", "0.3"]
    assert [row["test.mean.accuracy.median"] for row in rows] == ["0.5", "", ""]
    assert [row["val.averaged.accuracy.median"] for row in rows] == ["", "", "0.4"]
    assert [row["num_failed"] for row in rows] == ["0", "2", "0"]
    assert [row["max_epoch"] for row in rows] == ["10", "", "10"]
    assert "point.seed" not in rows[0]
