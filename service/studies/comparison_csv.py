"""A comparison as a table for a spreadsheet or a data frame: a row for each point. Pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

from pydantic import JsonValue

from service.study_schemas import FigureSpreads, PointComparison, SplitComparison, StudyComparison

_NUMBERS = ("num_jobs", "num_succeeded", "num_failed", "num_cancelled", "num_early_stopped", "num_live")
_FIGURES = tuple(FigureSpreads.model_fields)
_MEASURES = ("num_seeds", "median", "min", "max", "q1", "q3")


def comparison_csv(comparison: StudyComparison) -> str:
    """Columns: `is_best`, what each point changes (`point.method.rho`), how many jobs became what, and each figure as
    `val.mean.accuracy.median`. A cell is empty where there is nothing to tell."""
    paths = list(dict.fromkeys(path for point in comparison.points for path in point.point))
    rows = [dict(_cells(point, point in comparison.best)) for point in comparison.points]
    columns = [*_SAID, *(f"point.{path}" for path in paths), *_NUMBERS, "min_epoch", "max_epoch", *_figure_columns()]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_SAID = ("is_best", "method", "target", "manifest", "corruption")


def _cells(point: PointComparison, is_best: bool) -> Iterator[tuple[str, object]]:
    yield "is_best", str(is_best).lower()
    yield from (("method", point.method), ("target", point.target), ("manifest", point.manifest))
    yield "corruption", "" if point.corruption is None else point.corruption.model_dump_json()
    yield from ((f"point.{path}", _cell(value)) for path, value in point.point.items())
    yield from ((name, getattr(point, name)) for name in _NUMBERS)
    yield from zip(("min_epoch", "max_epoch"), point.epochs or (), strict=False)
    yield from _split_cells("val", point.val)
    yield from _split_cells("test", point.test)


def _split_cells(split: str, found: SplitComparison | None) -> Iterator[tuple[str, object]]:
    if found is None:
        return
    yield f"{split}.labels", found.labels
    for predictor, figures in (("mean", found.mean), ("averaged", found.averaged)):
        for figure in _FIGURES if figures is not None else ():
            spread = getattr(figures, figure)
            yield from ((f"{split}.{predictor}.{figure}.{name}", getattr(spread, name)) for name in _MEASURES)


def _figure_columns() -> Iterator[str]:
    for split in ("val", "test"):
        yield f"{split}.labels"
        for predictor in ("mean", "averaged"):
            for figure in _FIGURES:
                yield from (f"{split}.{predictor}.{figure}.{name}" for name in _MEASURES)


def _cell(value: JsonValue) -> object:
    """Numbers and words as they are, the rest as JSON."""
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else json.dumps(value)
