"""What the command line prints of studies: their states, and the comparison of their points."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from pydantic import JsonValue
from rich.table import Table
from rich.text import Text

from data_pipeline.spec import ClassDependentCorruption, Corruption
from service.cli.screen import console, plain_table, state_text
from service.study_schemas import (
    FigureSpreads,
    PointComparison,
    SplitComparison,
    Spread,
    StudyComparison,
    StudySummary,
    StudyView,
)

WIDE: Final = 120
"""Columns from which a median is shown with its spread."""

_FIGURES: Final = ("val accuracy", "test accuracy", "test NLL", "test ECE")
_NONE: Final = "–"


def print_studies(studies: Sequence[StudySummary]) -> None:
    """A line a study."""
    if not studies:
        console().print("no studies yet; make one with: hush study create STUDY.yaml")
        return
    table = plain_table("study", "name", "state", "jobs", "", "created", right=("jobs",))
    for study in studies:
        created = study.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(study.id, study.name, state_text(study.state), str(study.num_jobs), counts(study), created)
    console().print(table)


def print_study(study: StudyView, comparison: StudyComparison, *, all_points: bool) -> None:
    """A study with its best points, or with all of them."""
    out = console()
    out.print(
        Text.assemble((study.name, "bold"), "  ", state_text(study.state), f"  {study.num_jobs} jobs: {counts(study)}")
    )
    out.print(Text(study.id, style="dim"))
    for job in study.jobs:
        if job.state == "FAILED":
            out.print(Text(f"{job.name} failed: {job.reason.replace('_', ' ')}; see hush show {job.id}", style="red"))
    points = comparison.points if all_points else comparison.best
    if not any(point.val or point.test for point in points):
        out.print("nothing to compare yet: no job has finished an epoch")
        return
    out.print(comparison_table(points, with_spread=out.width >= WIDE))
    out.print(Text(_legend(comparison, all_points=all_points), style="dim"), soft_wrap=True)


def comparison_table(points: Sequence[PointComparison], *, with_spread: bool) -> Table:
    """A line a point, and one more for its predictions averaged over weight samples; of each figure the median."""
    several_sets = len({(point.manifest, repr(point.corruption)) for point in points}) > 1
    columns = ["method", "target", "point", *(["data"] if several_sets else []), "seeds"]
    table = plain_table(*columns, *_FIGURES, right=("seeds", *_FIGURES))
    for point in points:
        words = [point.method, point.target, point_text(point.point), *([_data(point)] if several_sets else [])]
        table.add_row(*words, _seeds(point), *_figures(point, averaged=False, with_spread=with_spread))
        if any(split and split.averaged for split in (point.val, point.test)):
            table.add_row(
                "",
                "",
                "weight samples averaged",
                *[""] * (len(columns) - 3),
                *_figures(point, averaged=True, with_spread=with_spread),
            )
    return table


def point_text(point: dict[str, JsonValue]) -> str:
    """What a point changes, in a few words: `rho=0.05 lr=0.1`."""
    fields = (
        f"{name.removeprefix('method.')}={_value(value)}" for name, value in point.items() if name != "method.kind"
    )
    return " ".join(fields) or _NONE


def spread_text(spread: Spread, form: str, *, with_spread: bool = True) -> str:
    """The median, and from where to where the seeds went."""
    median = format(spread.median, form)
    return f"{median} [{spread.min:{form}}–{spread.max:{form}}]" if with_spread and spread.num_seeds > 1 else median


def counts(study: StudySummary) -> str:
    """`3 succeeded, 1 running`."""
    words = [f"{number} {state.lower()}" for state, number in study.jobs_by_state.items()]
    early = [f"{study.num_early_stopped} of them stopped early"] if study.num_early_stopped else []
    return ", ".join(words + early)


def _figures(point: PointComparison, *, averaged: bool, with_spread: bool) -> Iterator[str]:
    val, test = _split(point.val, averaged=averaged), _split(point.test, averaged=averaged)
    spreads = (
        (None if val is None else val.accuracy, ".1%"),
        (None if test is None else test.accuracy, ".1%"),
        (None if test is None else test.nll, ".3f"),
        (None if test is None else test.ece, ".3f"),
    )
    for spread, form in spreads:
        yield _NONE if spread is None else spread_text(spread, form, with_spread=with_spread)


def _split(split: SplitComparison | None, *, averaged: bool) -> FigureSpreads | None:
    if split is None:
        return None
    return split.averaged if averaged else split.mean


def _seeds(point: PointComparison) -> str:
    """Jobs that count, of how many; a star says that some have not come to their end."""
    counted = point.num_succeeded + point.num_early_stopped + point.num_live
    unfinished = "*" if point.num_live or point.num_early_stopped else ""
    return f"{counted}{unfinished}" if counted == point.num_jobs else f"{counted}{unfinished} of {point.num_jobs}"


def _data(point: PointComparison) -> str:
    name = point.manifest.removesuffix("/manifest.json").rpartition("/")[2]
    return name if point.corruption is None else f"{name}, {_corruption(point.corruption)}"


def _corruption(corruption: Corruption) -> str:
    match corruption:
        case ClassDependentCorruption():
            return f"{corruption.kind} k={corruption.k:g} beta={corruption.beta:g}"
        case _:
            return f"{corruption.kind} {corruption.rate:g}"


def _legend(comparison: StudyComparison, *, all_points: bool) -> str:
    lines = [
        "Median [least–greatest] over seeds, after the last evaluated epoch."
        + ("" if all_points else " The best point of each method and target by val accuracy; --all shows every point.")
    ]
    if not comparison.is_final:
        lines.append("* some jobs have not ended: these figures will change.")
    return "\n".join(lines)


def _value(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
