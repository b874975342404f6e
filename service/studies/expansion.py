"""A study -> its jobs, in an order and under names that depend on nothing but the study. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import product

from pydantic import JsonValue, ValidationError

from service.studies.study_spec import MAX_JOBS, Point, StudySpec
from trainer.spec import JobSpec
from trainer.spec_errors import FieldError, SpecError, field_errors

MAX_ERRORS = 20
MAX_DEPTH = 8
"""Dots in the path of a field; no field of a job lies as deep."""


@dataclass(frozen=True)
class PlannedJob:
    """One job of a study."""

    index: int
    """Its place in the study, from 0."""
    point: Point
    """What is changed in the base, the seed included."""
    spec: JobSpec


def num_jobs(study: StudySpec) -> int:
    """How many jobs a study has; counted, not made."""
    num_of_grids = sum(math.prod(len(values) for values in grid.values()) for grid in study.grids)
    num_points = num_of_grids + len(study.points)
    return (num_points or 1) * len(study.seeds or (0,))


def points_of(study: StudySpec) -> Iterator[Point]:
    """What each job changes in the base: first the grids' points, the last field varying fastest, then `points`; each
    at all seeds before the next."""
    points = [dict(zip(grid, values, strict=True)) for grid in study.grids for values in product(*grid.values())]
    points += study.points
    for point in points or [{}]:
        for seed in study.seeds or ():
            yield point | {"seed": seed}
        if study.seeds is None:
            yield point


def expand(study: StudySpec) -> tuple[PlannedJob, ...]:
    """All jobs of a study. SpecError, one entry for each field that is wrong, if any is not a job, if two would be the
    same, or if they are too many."""
    _raise_if(_wrong_in_study(study))
    jobs: list[PlannedJob] = []
    found: dict[FieldError, list[str]] = {}
    for index, point in enumerate(points_of(study)):
        content = apply_point(study.base, point) | {"name": job_name(study, index)}
        try:
            jobs.append(PlannedJob(index, point, JobSpec.model_validate(content)))
        except ValidationError as error:
            for wrong in field_errors(error.errors(include_url=False)):
                found.setdefault(wrong, []).append(_called(index, point))
    _raise_if([_at(wrong, places) for wrong, places in found.items()])
    _raise_if(_repeated(jobs))
    _raise_if(_wrong_with_early_stop(study, jobs))
    return tuple(jobs)


def job_name(study: StudySpec, index: int) -> str:
    """`<study>-<index>`, with as many digits as the last job needs, so that names sort."""
    return f"{study.name}-{index:0{len(str(num_jobs(study) - 1))}d}"


def apply_point(base: Mapping[str, JsonValue], point: Point) -> dict[str, JsonValue]:
    """The base with a point's fields set, whole parts before their fields, and `kind` before the fields beside it."""
    content = dict(base)
    for path in sorted(point, key=lambda path: (path.count("."), path.rpartition(".")[2] != "kind")):
        content = _with(content, path, point[path])
    return content


def _with(part: Mapping[str, JsonValue], path: str, value: JsonValue) -> dict[str, JsonValue]:
    """A part of a job with a field set, whether there is such a one or not: validation will say. Another kind than the
    one named there drops that one's fields."""
    outer, _, inner = path.partition(".")
    if inner:
        below = part.get(outer)
        return {**part, outer: _with(below if isinstance(below, dict) else {}, inner, value)}
    if outer == "kind" and part.get("kind", value) != value:
        return {"kind": value}
    return {**part, outer: value}


def _wrong_in_study(study: StudySpec) -> list[FieldError]:
    wrong = []
    total = num_jobs(study)
    if total > MAX_JOBS:
        wrong.append(FieldError("grid", None, f"makes {total:,} jobs in all; a study has at most {MAX_JOBS:,}"))
    named = [("grid", path) for grid in study.grids for path in grid]
    named += [(f"points.{i}", path) for i, point in enumerate(study.points) for path in point]
    for where, path in named:
        if path.count(".") > MAX_DEPTH:
            wrong.append(FieldError(where, repr(path[:80]), f"names a field more than {MAX_DEPTH} parts deep"))
        if path == "name":
            wrong.append(FieldError(f"{where}.name", None, "may not be set: jobs are named after the study"))
        if path == "seed" and study.seeds is not None:
            wrong.append(FieldError(f"{where}.seed", None, "may not be set beside `seeds`"))
    return wrong


def _repeated(jobs: list[PlannedJob]) -> list[FieldError]:
    """An error for each job that is the same as an earlier one but for its name."""
    first: dict[bytes, PlannedJob] = {}
    wrong = []
    for job in jobs:
        earlier = first.setdefault(_digest(job.spec), job)
        if earlier is not job:
            pair = f"{_called(earlier.index, earlier.point)} and {_called(job.index, job.point)}"
            wrong.append(FieldError("points", None, f"each must make another job; {pair} are the same"))
    return wrong


def _digest(spec: JobSpec) -> bytes:
    return sha256(spec.model_dump_json(exclude={"name"}).encode()).digest()


def _wrong_with_early_stop(study: StudySpec, jobs: list[PlannedJob]) -> list[FieldError]:
    if study.early_stop is None:
        return []
    wrong = []
    if len({job.spec.data.model_dump_json(include={"manifest", "corruption"}) for job in jobs}) > 1:
        message = "needs jobs that train on the same data; these differ in data.manifest or data.corruption"
        wrong.append(FieldError("early_stop", None, message))
    grace, longest = study.early_stop.grace_epochs, max(job.spec.schedule.epochs for job in jobs)
    if grace >= longest:
        message = f"must be less than {longest}, the epochs of the longest job, for any to be stopped"
        wrong.append(FieldError("early_stop.grace_epochs", str(grace), message))
    return wrong


def _at(error: FieldError, places: list[str]) -> FieldError:
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return FieldError(error.field, error.value, f"{error.allowed} ({places[0]}{more})")


def _called(index: int, point: Point) -> str:
    """A job by its index and what it changes, shortened."""
    changes = ", ".join(f"{path}={value}" for path, value in point.items())
    return f"job {index}: {changes[:120]}{'…' * (len(changes) > 120)}" if changes else f"job {index}"


def _raise_if(wrong: list[FieldError]) -> None:
    if not wrong:
        return
    rest = len(wrong) - MAX_ERRORS
    more = [FieldError("points", None, f"{rest} more things are wrong")] if rest > 0 else []
    raise SpecError("study", wrong[:MAX_ERRORS] + more)
