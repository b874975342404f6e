"""What the command line shows of studies."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from rich.console import Console

from data_pipeline.spec import ClassDependentCorruption, Corruption, SymmetricCorruption
from service.cli.study_screen import comparison_table, point_text, print_studies, print_study, spread_text
from service.study_schemas import (
    FigureSpreads,
    PointComparison,
    SplitComparison,
    Spread,
    StudyComparison,
    StudyLinks,
    StudyView,
)


def spread(median: float, num_seeds: int = 3) -> Spread:
    return Spread(
        num_seeds=num_seeds, median=median, min=median - 0.01, max=median + 0.01, q1=median - 0.005, q3=median + 0.005
    )


def split(accuracy: float, *, averaged: float | None = None, num_seeds: int = 3) -> SplitComparison:
    def figures(accuracy: float) -> FigureSpreads:
        return FigureSpreads(
            accuracy=spread(accuracy, num_seeds),
            nll=spread(0.4, num_seeds),
            brier=spread(0.2, num_seeds),
            ece=spread(0.05, num_seeds),
        )

    return SplitComparison(
        labels="clean", mean=figures(accuracy), averaged=None if averaged is None else figures(averaged)
    )


def point(method: str, **changes: object) -> PointComparison:
    fields = {
        "point": {"method.kind": method},
        "manifest": "/data/digits/manifest.json",
        "corruption": None,
        "method": method,
        "target": "hard",
        "job_ids": ["a", "b", "c"],
        "num_jobs": 3,
        "num_succeeded": 3,
        "num_failed": 0,
        "num_cancelled": 0,
        "num_early_stopped": 0,
        "num_live": 0,
        "epochs": (10, 10),
        "val": split(0.9),
        "test": split(0.88),
    }
    return PointComparison.model_validate(fields | changes)


def lines(*points: PointComparison, with_spread: bool = True) -> list[str]:
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(comparison_table(points, with_spread=with_spread))
    return [" ".join(line.split()) for line in captured.get().splitlines() if line.strip(" ─")]


def test_a_line_a_point_and_one_for_averaged_samples() -> None:
    ivon = point("ivon", val=split(0.9, averaged=0.91), test=split(0.88, averaged=0.89))
    sam = point("sam", point={"method.kind": "sam", "method.rho": 0.05}, test=None)
    assert lines(ivon, sam) == [
        "method target point seeds val accuracy test accuracy test NLL test ECE",
        "ivon hard – 3 90.0% [89.0%–91.0%] 88.0% [87.0%–89.0%] 0.400 [0.390–0.410] 0.050 [0.040–0.060]",
        "weight samples averaged 91.0% [90.0%–92.0%] 89.0% [88.0%–90.0%] 0.400 [0.390–0.410] 0.050 [0.040–0.060]",
        "sam hard rho=0.05 3 90.0% [89.0%–91.0%] – – –",
    ]
    assert lines(sam, with_spread=False)[1:] == ["sam hard rho=0.05 3 90.0% – – –"]


@pytest.mark.parametrize(
    ("changes", "seeds"),
    [
        ({}, "3"),
        ({"num_succeeded": 2, "num_failed": 1}, "2 of 3"),
        ({"num_succeeded": 1, "num_live": 2}, "3*"),
        ({"num_succeeded": 1, "num_cancelled": 2, "num_early_stopped": 1}, "2* of 3"),
    ],
)
def test_seeds_that_count(changes: dict[str, object], seeds: str) -> None:
    assert f" – {seeds} 90.0%" in lines(point("sgd", **changes))[1]


@pytest.mark.parametrize(
    ("corruption", "data"),
    [
        (None, "digits"),
        (SymmetricCorruption(rate=0.3), "digits, symmetric 0.3"),
        (ClassDependentCorruption(k=0.1, beta=0.02), "digits, class_dependent k=0.1 beta=0.02"),
    ],
)
def test_data_sets_are_named_where_they_differ(corruption: Corruption | None, data: str) -> None:
    other = point("sgd", manifest="s3://bucket/other/manifest.json")
    assert f"– {data} 3" in lines(point("sgd", corruption=corruption), other)[1]
    assert "– other 3" in lines(point("sgd", corruption=corruption), other)[2]


def test_words_for_a_point() -> None:
    assert point_text(
        {"method.kind": "sam", "method.rho": 0.05, "target": {"kind": "hard"}, "model.arch": "resnet18"}
    ) == ('rho=0.05 target={"kind": "hard"} model.arch=resnet18')
    assert point_text({}) == "–"


def test_one_seed_has_no_spread() -> None:
    assert spread_text(spread(0.9, num_seeds=1), ".1%") == "90.0%"


def study(**changes: object) -> StudyView:
    fields = {
        "id": "0" * 26,
        "name": "rho",
        "state": "RUNNING",
        "num_jobs": 3,
        "jobs_by_state": {"SUCCEEDED": 1, "RUNNING": 1, "FAILED": 1},
        "num_early_stopped": 0,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "links": StudyLinks.model_validate({"self": "/s", "jobs": "/j", "comparison": "/c"}),
        "spec": {"name": "rho", "base": {}},
        "jobs": [
            {
                "id": "1" * 26,
                "index": 0,
                "name": "rho-0",
                "point": {},
                "method": "sam",
                "state": "FAILED",
                "reason": "non_finite_loss",
                "self": "/j/1",
            }
        ],
    }
    return StudyView.model_validate(fields | changes)


def test_a_study_with_its_best(capsys: pytest.CaptureFixture[str]) -> None:
    comparison = StudyComparison(
        study_id="0" * 26, is_final=False, best=[point("sam")], points=[point("sam"), point("sgd")]
    )
    print_study(study(), comparison, all_points=False)
    shown = capsys.readouterr().out
    assert "rho  RUNNING  3 jobs: 1 succeeded, 1 running, 1 failed" in shown
    assert f"rho-0 failed: non finite loss; see hush show {'1' * 26}" in " ".join(shown.split())
    assert "sgd" not in shown
    assert "these figures will change" in shown
    print_study(study(), comparison.model_copy(update={"is_final": True}), all_points=True)
    shown = capsys.readouterr().out
    assert "sgd" in shown
    assert "will change" not in shown


def test_nothing_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    print_studies([])
    assert "hush study create" in capsys.readouterr().out
    empty = point("sam", val=None, test=None)
    print_study(study(), StudyComparison(study_id="0" * 26, is_final=False, best=[], points=[empty]), all_points=True)
    assert "nothing to compare yet" in capsys.readouterr().out


def test_a_list_of_studies(capsys: pytest.CaptureFixture[str]) -> None:
    print_studies([study(num_early_stopped=1, jobs_by_state={"CANCELLED": 3})])
    assert "3 cancelled, 1 of them stopped early" in " ".join(capsys.readouterr().out.split())
