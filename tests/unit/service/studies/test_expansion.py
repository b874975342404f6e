"""A study's jobs: how many, in which order, under which names, and what is said of those that are none."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.studies.expansion import apply_point, expand, num_jobs, points_of
from service.studies.study_spec import StudySpec
from trainer.spec import JobSpec
from trainer.spec_errors import SpecError

SAM = {"name": "unused", "data": {"manifest": "/m"}, "method": {"kind": "sam", "rho": 0.05, "momentum": 0.8}}

VALUES = {
    "method.rho": st.floats(0, 1),
    "method.lr": st.floats(0.001, 1),
    "method.momentum": st.floats(0, 0.99),
    "schedule.epochs": st.integers(1, 300),
    "precision": st.sampled_from(["fp32", "bf16"]),
    "target": st.sampled_from([{"kind": "hard"}, {"kind": "smoothed", "rate": 0.3}, {"kind": "online"}]),
    "scheduling.priority": st.integers(-3, 3),
}


@st.composite
def grids(draw: st.DrawFn) -> dict[str, list[Any]]:
    paths = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3, unique=True))
    return {path: draw(st.lists(VALUES[path], min_size=1, max_size=4, unique_by=repr)) for path in paths}


SEEDS = st.none() | st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3, unique=True)


def study(**changes: Any) -> StudySpec:
    return StudySpec.model_validate({"name": "study", "base": SAM, **changes})


def errors_of(**changes: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        expand(study(**changes))
    return [str(error) for error in caught.value.errors]


@given(grids(), SEEDS)
def test_a_grid_is_the_product_of_its_values_at_each_seed(grid: dict[str, list[Any]], seeds: list[int] | None) -> None:
    spec = study(grid=grid, seeds=seeds)
    jobs = expand(spec)
    assert len(jobs) == num_jobs(spec) == math.prod(map(len, grid.values())) * len(seeds or [0])
    expected = [
        dict(zip(grid, values, strict=True)) | ({} if seed is None else {"seed": seed})
        for values in product(*grid.values())
        for seed in seeds or [None]
    ]
    assert [job.point for job in jobs] == expected == list(points_of(spec))
    assert [job.index for job in jobs] == list(range(len(jobs)))
    names = [job.spec.name for job in jobs]
    assert len(set(names)) == len(names)
    assert names == sorted(names)
    for job in jobs:
        content: dict[str, Any] = JobSpec.model_validate(job.spec.model_dump()).model_dump(mode="json")
        for path, value in job.point.items():
            outer, _, inner = path.partition(".")
            found = content[outer][inner] if inner else content[outer]
            assert found == value if not isinstance(value, dict) else found.items() >= value.items()


@given(grids(), SEEDS)
def test_the_same_study_read_again_gives_the_same_jobs(grid: dict[str, list[Any]], seeds: list[int] | None) -> None:
    spec = study(grid=grid, seeds=seeds)
    again = StudySpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert expand(again) == expand(spec)


def test_grids_come_one_after_the_other_and_then_the_points() -> None:
    grid = [{"method.rho": [0, 0.1]}, {"method": [{"kind": "sgd"}], "target.kind": ["smoothed", "online"]}]
    jobs = expand(study(grid=grid, points=[{"method": {"kind": "ivon"}}, {}]))
    kinds = [(job.spec.method.kind, job.spec.target.kind) for job in jobs]
    assert kinds == [("sam", "hard")] * 2 + [("sgd", "smoothed"), ("sgd", "online"), ("ivon", "hard"), ("sam", "hard")]
    assert jobs[5].spec.model_copy(update={"name": "unused"}) == JobSpec.model_validate(SAM)


def test_an_empty_grid_makes_nothing_and_a_study_without_points_is_its_base() -> None:
    assert [job.point for job in expand(study(grid={}, points=[{"method.rho": 0}]))] == [{"method.rho": 0}]
    assert [job.point for job in expand(study(grid={}))] == [{}]
    assert [job.spec.seed for job in expand(study(seeds=[5, 3]))] == [5, 3]


@pytest.mark.parametrize(
    ("point", "method"),
    [
        ({"method.kind": "ivon"}, {"kind": "ivon"}),
        ({"method.ess": 9, "method.kind": "ivon"}, {"kind": "ivon", "ess": 9}),
        ({"method": {"kind": "sgd"}, "method.lr": 0.3}, {"kind": "sgd", "lr": 0.3}),
        ({"method.lr": 0.3, "method": {"kind": "sgd"}}, {"kind": "sgd", "lr": 0.3}),
        ({"method.kind": "sam"}, SAM["method"]),
        ({"method.kind": "sam", "method.rho": 0}, {"kind": "sam", "rho": 0, "momentum": 0.8}),
    ],
)
def test_another_kind_drops_what_belongs_to_the_one_before(point: dict[str, Any], method: dict[str, Any]) -> None:
    before = repr(SAM)
    assert apply_point(SAM, point)["method"] == method
    assert repr(SAM) == before


def test_a_kind_where_none_was_named_keeps_the_fields_beside_it() -> None:
    assert apply_point({"method": {"lr": 0.3}}, {"method.kind": "sgd"}) == {"method": {"lr": 0.3, "kind": "sgd"}}


def test_a_part_that_was_null_is_made() -> None:
    base = {"data": {"manifest": "/m", "corruption": None}}
    point = {"data.corruption.rate": 0.3, "data.corruption.kind": "symmetric"}
    assert apply_point(base, point)["data"] == {"manifest": "/m", "corruption": {"kind": "symmetric", "rate": 0.3}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"grid": {"method.rho": [0, -1], "seed": [0, 1]}},
            ["method.rho = -1: must be greater than or equal to 0 (job 2: method.rho=-1, seed=0 and 1 more)"],
        ),
        (
            {"points": [{"method.k": 3}]},
            [
                (
                    "method.k = 3: is no field here; allowed are kind, lr, momentum, weight_decay, nesterov, rho"
                    " (job 0: method.k=3)"
                ),
            ],
        ),
        ({"points": [{"seed.x": 1}]}, ["seed = {'x': 1}: must be a valid integer (job 0: seed.x=1)"]),
        ({"points": [{"name": "x"}]}, ["points.0.name: may not be set: jobs are named after the study"]),
        ({"grid": {"seed": [1]}, "seeds": [1]}, ["grid.seed: may not be set beside `seeds`"]),
        ({"points": [{"." * 9: 1}]}, ["points.0 = '.........': names a field more than 8 parts deep"]),
        (
            {"points": [{}, {"method.rho": 0.05}]},
            ["points: each must make another job; job 0 and job 1: method.rho=0.05 are the same"],
        ),
        ({"seeds": [1, 1]}, ["points: each must make another job; job 0: seed=1 and job 1: seed=1 are the same"]),
        (
            {"grid": {"method.rho": list(range(100)), "method.lr": list(range(11))}},
            ["grid: makes 1,100 jobs in all; a study has at most 1,000"],
        ),
        (
            {"early_stop": {"grace_epochs": 9}, "grid": {"schedule.epochs": [8, 9]}},
            ["early_stop.grace_epochs = 9: must be less than 9, the epochs of the longest job, for any to be stopped"],
        ),
        (
            {"early_stop": {}, "grid": {"data.manifest": ["/m", "/n"]}},
            [
                "early_stop: needs jobs that train on the same data; these differ in data.manifest or data.corruption",
            ],
        ),
    ],
)
def test_what_is_wrong_is_said_with_field_value_and_job(changes: dict[str, Any], expected: list[str]) -> None:
    assert errors_of(**changes) == expected


def test_a_mistake_in_the_base_is_said_once() -> None:
    found = errors_of(base=SAM | {"precision": "fp8"}, grid={"method.rho": [i / 500 for i in range(500)]})
    assert found == ["precision = 'fp8': must be 'fp32' or 'bf16' (job 0: method.rho=0.0 and 499 more)"]


def test_no_more_than_twenty_mistakes_are_told() -> None:
    found = errors_of(grid={"method.rho": list(range(-50, 0))})
    assert len(found) == 21
    assert found[-1] == "points: 30 more things are wrong"


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": {"method.rho": []}},
        {"grid": 5},
        {"grid": {"method.rho": 5}},
        {"points": [5]},
        {"seeds": []},
        {"seeds": [-1]},
        {"name": "-"},
        {"name": "x" * 191},
        {"base": 5},
        {"base": {"name": "a\0"}},
        {"base": {"name": "\ud800"}},
        {"base": {"\ud800\0": 1}},
        {"base": {"name": math.inf}},
        {"early_stop": {"kind": "median"}},
        {"early_stop": {"reduction_factor": 1}},
        {"unknown": 1},
    ],
)
def test_what_is_no_study(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        study(**changes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PARTS = ["", "data", "method", "kind", "rho", "seed", "corruption", "manifest", "target", "rate", "x"]
PATHS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map(".".join) | st.text(max_size=5)


@given(st.dictionaries(PATHS, JSON | st.just("sam"), max_size=3), st.dictionaries(st.sampled_from(PARTS), JSON))
def test_whatever_is_asked_for_is_a_study_or_said_to_be_none(point: dict[str, Any], base: dict[str, Any]) -> None:
    try:
        jobs = expand(study(base=SAM | base, points=[point], grid={"method.rho": [0, 0.5]}))
    except (SpecError, ValidationError):
        return  # told, and nothing else is raised
    assert len(jobs) == 3


def test_the_example_is_a_study() -> None:
    content = yaml.safe_load((Path(__file__).parents[4] / "examples/digits-study.yaml").read_text())
    jobs = expand(StudySpec.model_validate(content))
    assert len(jobs) == 27
    kinds = [(job.spec.method.kind, job.spec.target.kind) for job in jobs[::3]]
    assert kinds == [("sam", "hard")] * 4 + [("sgd", "smoothed")] * 4 + [("ivon", "hard")]
