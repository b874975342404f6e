"""What is wrong with a spec, in words for people: field, value, what is allowed. Imports no torch.

REST and the command line say the same thing because both ask this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainer.spec import JobSpec

_Spec = TypeVar("_Spec", bound=BaseModel)

MAX_VALUE_CHARS = 80
WHOLE_SPEC = "spec"
"""Stands for the field where an error concerns the spec as a whole."""


@dataclass(frozen=True)
class FieldError:
    """One thing that is wrong."""

    field: str
    """Dotted path, e.g. `method.lr`."""
    value: str | None
    """What was given, shortened; None where nothing was, or where the message names it."""
    allowed: str
    """What is allowed instead."""

    def __str__(self) -> str:
        given = "" if self.value is None else f" = {self.value}"
        return f"{self.field}{given}: {self.allowed}"


class SpecError(ValueError):
    """A spec cannot be used; `errors` says why, a line for each field."""

    def __init__(self, source: str, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(f"{source}: {error}" for error in self.errors))


def load_spec(path: str | Path, overrides: Mapping[str, object] | None = None) -> JobSpec:
    """Read a job from a YAML (or JSON) file; SpecError if it cannot be read or is not a job.

    `overrides` replaces fields of the file, by dotted path: `{"method.lr": 0.1}`.
    """
    return load_as(JobSpec, path, overrides)


def load_as(kind: type[_Spec], path: str | Path, overrides: Mapping[str, object] | None = None) -> _Spec:
    """Read a spec of another kind as `load_spec` reads a job."""
    path = Path(path)
    content = _content(path)
    for field, value in (overrides or {}).items():
        _override(content, field, value)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise SpecError(str(path), field_errors(error.errors(include_url=False), kind)) from None


def _content(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(str(path), [FieldError("file", None, f"cannot be read: {error.strerror}")]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [FieldError("file", None, f"is not YAML: {_one_line(error)}")]) from None
    except RecursionError:
        raise SpecError(str(path), [FieldError("file", None, "is nested too deeply")]) from None


def _override(content: object, field: str, value: object) -> None:
    """Set a field of what a file holds; whether there is such a field, validation will say."""
    if not isinstance(content, dict):
        return
    outer, _, inner = field.partition(".")
    if not inner:
        content[outer] = value
        return
    if not isinstance(content.get(outer), dict):
        content[outer] = {}
    _override(content[outer], inner, value)


def field_errors(errors: Sequence[ErrorDetails], root: type[BaseModel] = JobSpec) -> tuple[FieldError, ...]:
    """pydantic's errors in our words, one for each field; the alternatives of a union make one error."""
    found: dict[str, list[FieldError]] = {}
    for error in errors:
        field_error = _field_error(error, root)
        found.setdefault(field_error.field, []).append(field_error)
    return tuple(
        FieldError(field, alternatives[0].value, _either(error.allowed for error in alternatives))
        for field, alternatives in found.items()
    )


def _either(messages: Iterator[str]) -> str:
    return "; or ".join(dict.fromkeys(messages))


def _field_error(error: ErrorDetails, root: type[BaseModel]) -> FieldError:
    path, siblings = _walk(error["loc"], root)
    field = ".".join(path) or WHOLE_SPEC
    value: str | None = _shown(error["input"])
    match error["type"]:
        case "extra_forbidden":
            allowed = f"is no field here; allowed are {', '.join(siblings)}"
        case "missing":
            value, allowed = None, "is required"
        case "union_tag_not_found":
            field, value, allowed = f"{field}.kind", None, "is required; it chooses the fields allowed beside it"
        case "union_tag_invalid":
            context = error.get("ctx", {})
            field, value, allowed = f"{field}.kind", repr(context["tag"]), f"must be one of {context['expected_tags']}"
        case "value_error":
            value = None if isinstance(error["input"], dict | BaseModel) else value
            allowed = error["msg"].removeprefix("Value error, ")
        case "model_type" | "model_attributes_type":
            allowed = f"must be a mapping with fields of {', '.join(siblings)}"
        case _:
            _, should, rule = error["msg"].partition("should ")
            allowed = f"must {rule}" if should else error["msg"]
    return FieldError(field, value, allowed)


def _walk(loc: Sequence[int | str], root: type[BaseModel]) -> tuple[list[str], list[str]]:
    """Path of fields that `loc` names, without pydantic's names of union branches; and the fields allowed at its end.

    The last piece of an unknown field is kept, because it stands where a field is looked for.
    """
    path: list[str] = []
    models: list[type[BaseModel]] = [root]
    siblings = list(root.model_fields)
    for piece in loc:
        owner = next((model for model in models if piece in model.model_fields), None)
        chosen = [model for model in models if len(models) > 1 and _kind(model) == piece]
        if owner is not None:
            models = list(_models_in(owner.model_fields[str(piece)].annotation))
            path.append(str(piece))
        elif chosen:
            models = chosen
        elif models or isinstance(piece, int):
            path.append(str(piece))
        siblings = [name for model in models for name in model.model_fields] or siblings
    return path, siblings


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field's annotation names, alternatives of a union one by one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _kind(model: type[BaseModel]) -> object:
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}…"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
