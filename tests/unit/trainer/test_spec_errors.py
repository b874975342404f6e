"""A bad spec is told in one line that names field, value and what is allowed."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from trainer.spec import JobSpec
from trainer.spec_errors import SpecError, field_errors, load_spec

GOOD = {"name": "job", "data": {"manifest": "data/manifest.json"}}


def said(**changes: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({**GOOD, **changes})
    return [str(error) for error in field_errors(caught.value.errors())]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"method": {"kind": "ivon", "lr": -1}}, "method.lr = -1: must be greater than 0"),
        ({"method": {"kind": "adam"}}, "method.kind = 'adam': must be one of 'ivon', 'sgd', 'adamw', 'sam', 'asam'"),
        ({"method": {"lr": 1}}, "method.kind: is required; it chooses the fields allowed beside it"),
        ({"precision": "fp16"}, "precision = 'fp16': must be 'fp32' or 'bf16'"),
        ({"schedule": {"milestones": [1, "x"]}}, "schedule.milestones.1 = 'x': must be a valid integer"),
        (
            {"label_noise": {"num_examples": "al"}},
            "label_noise.num_examples = 'al': must be a valid integer,",
        ),
        (
            {"data": {"manifest": "m", "batch_size": 7}, "resources": {"num_workers": 2}},
            "spec: data.batch_size 7 is the global batch and must be a multiple of resources.num_workers 2",
        ),
    ],
)
def test_names_field_value_and_what_is_allowed(changes: dict[str, object], line: str) -> None:
    lines = said(**changes)
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_field_of_another_method_lists_the_fields_of_this_one() -> None:
    assert said(method={"kind": "sgd", "hess_init": 1}) == [
        "method.hess_init = 1: is no field here; allowed are kind, lr, momentum, weight_decay, nesterov"
    ]


def test_reads_yaml_with_exponents_that_yaml_takes_for_text(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: job\ndata: {manifest: m}\nmethod: {kind: ivon, weight_decay: 2e-4}\n")
    assert load_spec(path).method.weight_decay == 2e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not YAML"),
        ("[" * 3000, "is nested too deeply"),
        ("!!python/object/apply:os.system [true]", "is not YAML"),
        ("- 1", "must be a mapping with fields of api_version, name"),
        ("name: job", "data: is required"),
    ],
)
def test_file_that_is_no_spec(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        load_spec(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: file: cannot be read: No such file"):
        load_spec(tmp_path / "none.yaml")
