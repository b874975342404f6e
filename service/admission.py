"""Admission: the checks of a job that need the world, made before anything of it is stored or started."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path

from data_pipeline.manifest import Manifest
from service.errors import ProblemError
from service.schemas import FieldProblem
from trainer.spec import JobSpec


def admit(spec: JobSpec, roots: tuple[Path, ...]) -> None:
    """Raise a 422 problem unless the job's manifest and weights can be read, and lie where jobs may read."""
    checks = [("data.manifest", spec.data.manifest, _check_manifest)]
    if spec.model.weights not in {"none", "imagenet"}:
        checks.append(("model.weights", spec.model.weights, _check_weights))
    wrong = []
    for field, value, check in checks:
        try:
            check(_inside(value, roots))
        except ValueError as error:
            wrong.append(FieldProblem(field=field, value=repr(value)[:200], message=str(error)))
    if wrong:
        detail = "; ".join(f"{entry.field} = {entry.value}: {entry.message}" for entry in wrong)
        raise ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=wrong)


def _inside(text: str, roots: tuple[Path, ...]) -> Path:
    """The path with its symlinks resolved, if it lies under a root. Asked first: what lies elsewhere is none of a job's
    business, not even whether it exists."""
    path = Path(text)
    if not path.is_absolute():
        raise ValueError("must be an absolute path: the service does not know which folder it would be relative to")
    try:
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, a loop of symlinks
        raise ValueError("is not a path that can be read") from None
    if not any(resolved.is_relative_to(root) for root in roots):
        allowed = ", ".join(str(root) for root in roots)
        raise ValueError(f"must lie under one of {allowed}; HUSH_ALLOWED_ROOTS of the service sets these")
    return resolved


def _check_manifest(path: Path) -> None:
    manifest = Manifest.load(path)
    if "train" not in manifest.splits:
        raise ValueError(f"has no split 'train', only {', '.join(manifest.splits) or 'none'}")


def _check_weights(path: Path) -> None:
    try:
        with path.open("rb"):
            return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"must be 'none', 'imagenet' or the path of a file that can be read: {reason}") from None
