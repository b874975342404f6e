"""JobSpec: what is accepted, what is refused, and that it survives JSON and YAML."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from pydantic import ValidationError

from trainer.method_spec import IVONSpec, SGDSpec
from trainer.spec import JobSpec

MINIMAL = {"name": "digits", "data": {"manifest": "data/digits/manifest.json"}}


def with_(path: str, value: object) -> dict[str, object]:
    """MINIMAL with the field at the dotted `path` set."""
    spec: dict[str, object] = yaml.safe_load(yaml.safe_dump(MINIMAL))
    *parents, leaf = path.split(".")
    node = spec
    for parent in parents:
        child = node.setdefault(parent, {})
        assert isinstance(child, dict)
        node = child
    node[leaf] = value
    return spec


def test_a_name_and_a_manifest_are_enough_and_give_ivon() -> None:
    assert JobSpec.model_validate(MINIMAL).method == IVONSpec()


@pytest.mark.parametrize(
    ("method", "expected"), [({"kind": "ivon", "lr": 1}, IVONSpec(lr=1)), ({"kind": "sgd", "lr": 1}, SGDSpec(lr=1))]
)
def test_the_kind_chooses_the_method(method: dict[str, object], expected: object) -> None:
    assert JobSpec.model_validate({**MINIMAL, "method": method}).method == expected


def test_a_spec_survives_json_and_yaml() -> None:
    spec = JobSpec.model_validate(with_("schedule", {"epochs": 30, "decay": "step", "milestones": [10, 20]}))
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert JobSpec.model_validate(yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json")))) == spec


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("colour", "red", "colour"),
        ("name", "a b", "name"),
        ("name", "", "name"),
        ("method", {"kind": "sgd", "hess_init": 1.0}, "hess_init"),
        ("method", {"kind": "adam"}, "'ivon', 'sgd', 'adamw', 'sam', 'asam', 'looksam', 'msam', 'bsam'"),
        ("method", {"kind": "ivon", "lr": 0}, "greater than 0"),
        ("method", {"kind": "ivon", "lr": float("nan")}, "finite"),
        ("method", {"kind": "ivon", "num_mc_samples": 3, "antithetic": True}, "must be even"),
        ("method", {"kind": "sgd", "momentum": 0, "nesterov": True}, "momentum 0 must be above 0"),
        ("method", {"kind": "sam", "momentum": 0, "nesterov": True}, "momentum 0 must be above 0"),
        ("method", {"kind": "sam", "rho": -0.1}, "greater than or equal to 0"),
        ("method", {"kind": "asam", "k": 5}, "k"),
        ("method", {"kind": "looksam", "k": 0}, "greater than or equal to 1"),
        ("method", {"kind": "msam", "momentum": 0}, "greater than 0"),
        ("method", {"kind": "bsam", "precision_init": 0}, "greater than 0"),
        ("method", {"kind": "adamw", "momentum": 0.9}, "momentum"),
        ("target", {"kind": "smoothed", "rate": -0.1}, "greater than or equal to 0"),
        ("target", {"kind": "hard", "rate": 0.1}, "rate"),
        ("data.corruption", {"kind": "pairflip", "rate": 1.5}, "less than 1"),
        ("data.manifest", "", "manifest"),
        ("data.batch_size", 0, "batch_size"),
        ("model", {"arch": "small_cnn", "weights": "imagenet"}, "ResNets only"),
        ("schedule", {"epochs": 2, "warmup_epochs": 2}, "less than epochs"),
        ("schedule", {"epochs": 9, "milestones": [3]}, "decay: step"),
        ("schedule", {"epochs": 9, "milestones": [6, 3], "decay": "step"}, "must rise"),
        ("label_noise.num_mc_samples", 5, "must be even"),
        ("label_noise.num_examples", 0, "at least 1"),
        ("resources.num_workers", 3, "multiple of"),
        ("seed", -1, "seed"),
    ],
)
def test_a_bad_field_is_refused_by_name(path: str, value: object, said: str) -> None:
    with pytest.raises(ValidationError, match=r"1 validation error|validation errors") as caught:
        JobSpec.model_validate(with_(path, value))
    assert said in str(caught.value)


def test_a_spec_cannot_be_changed() -> None:
    spec = JobSpec.model_validate(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 1  # type: ignore[misc]  # the point of the test


def test_every_field_is_documented() -> None:
    """The docstrings under the fields become the REST documentation: none may be missing."""
    schema = JobSpec.model_json_schema()
    for name, model in {"JobSpec": schema, **schema["$defs"]}.items():
        for field, said in model.get("properties", {}).items():
            documented = {"description", "const", "$ref", "discriminator", "anyOf"} & set(said)
            assert documented, f"{name}.{field} has no docstring"


def test_reading_a_spec_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'fastapi', 'sqlalchemy', 'numpy'}"
    code = f"import sys, trainer.spec, trainer.run_schema; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"
