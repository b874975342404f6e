"""A spec file as the command line takes it: with overrides, and with paths that the service can find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from trainer.spec import JobSpec
from trainer.spec_errors import load_spec


def read_job(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a spec, change the fields of `overrides` (`method.lr=0.1`), and make its paths absolute."""
    spec = load_spec(path, dict(_parse(override) for override in overrides))
    data = spec.data.model_copy(update={"manifest": _absolute(spec.data.manifest, path.parent)})
    model = spec.model
    if model.weights not in {"none", "imagenet"}:
        model = model.model_copy(update={"weights": _absolute(model.weights, path.parent)})
    return spec.model_copy(update={"data": data, "model": model})


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
