"""Spec files as the command line takes them: with overrides, and with paths that the service can find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml
from pydantic import JsonValue

from service.studies.study_spec import StudySpec
from trainer.spec import JobSpec
from trainer.spec_errors import load_as, load_spec

NO_PATHS: Final = frozenset({"none", "imagenet"})
"""What `model.weights` may say beside a path."""


def read_job(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a spec, change the fields of `overrides` (`method.lr=0.1`), and make its paths absolute."""
    spec = load_spec(path, _parse_all(overrides))
    data = spec.data.model_copy(update={"manifest": _absolute(spec.data.manifest, path.parent)})
    model = spec.model
    if model.weights not in NO_PATHS:
        model = model.model_copy(update={"weights": _absolute(model.weights, path.parent)})
    return spec.model_copy(update={"data": data, "model": model})


def read_study(path: Path, overrides: Sequence[str] = ()) -> StudySpec:
    """Read a study likewise (`base.schedule.epochs=3`)."""
    study = load_as(StudySpec, path, _parse_all(overrides))
    grids = [
        {field: [_found(field, value, path.parent) for value in values] for field, values in grid.items()}
        for grid in study.grids
    ]
    content = study.model_dump(mode="json", exclude_unset=True) | {
        "base": _found("", study.base, path.parent),
        "points": [_found("", point, path.parent) for point in study.points],
        "grid": grids[0] if isinstance(study.grid, dict) else grids,
    }
    return StudySpec.model_validate(content)


def _found(field: str, value: JsonValue, folder: Path) -> JsonValue:
    """A value of a job's field, or of all fields below it, with the paths in it made absolute."""
    if isinstance(value, dict):
        return {name: _found(f"{field}.{name}" if field else name, inner, folder) for name, inner in value.items()}
    is_path = field == "data.manifest" or (field == "model.weights" and value not in NO_PATHS)
    return _absolute(value, folder) if is_path and isinstance(value, str) else value


def _parse_all(overrides: Sequence[str]) -> dict[str, object]:
    return dict(_parse(override) for override in overrides)


def _parse(override: str) -> tuple[str, object]:
    field, equals, value = override.partition("=")
    if not field or not equals:
        raise ValueError(f"--set {override}: must be FIELD=VALUE, e.g. method.lr=0.1")
    try:
        return field, yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):
        raise ValueError(f"--set {override}: {value!r} is not YAML") from None


def _absolute(text: str, spec_folder: Path) -> str:
    """A relative path as seen from this folder or else, if nothing is there, from the spec's; URIs stay."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~somebody, who is nobody here
        raise ValueError(f"{text!r}: there is no such user") from None
    if "://" in text or path.is_absolute():
        return str(path) if path.is_absolute() else text
    here, beside = path.absolute(), (spec_folder / path).absolute()
    return str(beside if beside.exists() and not here.exists() else here)
