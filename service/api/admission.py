"""Admission: the checks of a job that need the world, made before anything of it is stored or started."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path

from data_pipeline.errors import StorageError
from data_pipeline.label_corruption import check_corruption
from data_pipeline.manifest import Manifest
from data_pipeline.storage.addresses import is_remote, url_parts
from data_pipeline.storage.patience import Patience
from service.api.errors import ProblemError
from service.schemas import FieldProblem
from service.studies.study_spec import StudySpec
from trainer.spec import JobSpec

PATIENCE = Patience(retry_s=5, silence_s=5)
"""With a remote storage, while somebody waits for an answer."""


def admit_study(study: StudySpec, specs: Iterable[JobSpec], roots: tuple[Path, ...], urls: tuple[str, ...]) -> None:
    """Admit each of a study's jobs; what is the same for many is looked at once."""
    seen = set()
    for spec in specs:
        what = (spec.data.manifest, str(spec.data.corruption), spec.model.weights)
        if what not in seen:
            seen.add(what)
            admit(spec, roots, urls, splits=("train",) if study.early_stop is None else ("train", "val"))


def admit(spec: JobSpec, roots: tuple[Path, ...], urls: tuple[str, ...], splits: tuple[str, ...] = ("train",)) -> None:
    """Raise a 422 problem unless the job's manifest and weights can be read, and lie where jobs may read: under one of
    `roots` or, the manifest, of `urls`; and unless it has these splits, and its label noise suits the data set."""
    manifest: Manifest | None = None

    def check_manifest() -> None:
        nonlocal manifest
        manifest = readable_manifest(spec.data.manifest, roots, urls)
        _check_splits(manifest, splits)

    def check_noise() -> None:
        if manifest is not None and spec.data.corruption is not None:
            check_corruption(spec.data.corruption, manifest)

    checks: list[tuple[str, object, Callable[[], None]]] = [
        ("data.manifest", spec.data.manifest, check_manifest),
        ("data.corruption", spec.data.corruption and spec.data.corruption.model_dump(), check_noise),
    ]
    if spec.model.weights not in {"none", "imagenet"}:
        checks.append(("model.weights", spec.model.weights, lambda: _check_weights(_inside(spec.model.weights, roots))))
    wrong = []
    for field, value, check in checks:
        try:
            check()
        except (ValueError, StorageError) as error:
            wrong.append(FieldProblem(field=field, value=repr(value)[:200], message=str(error)))
    if wrong:
        detail = "; ".join(f"{entry.field} = {entry.value}: {entry.message}" for entry in wrong)
        raise ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=wrong)


def readable_manifest(manifest: str, roots: tuple[Path, ...], urls: tuple[str, ...]) -> Manifest:
    """The manifest at a path or address; ValueError if it may not or cannot be read, StorageError if it is away."""
    return Manifest.load(_allowed(manifest, roots, urls), PATIENCE)


def _allowed(manifest: str, roots: tuple[Path, ...], urls: tuple[str, ...]) -> str | Path:
    """The manifest's path or address, if a job may read it. Nothing is asked of a storage that is not allowed."""
    if not is_remote(manifest):
        return _inside(manifest, roots)
    parts = url_parts(manifest)
    if not any(parts[: len(allowed)] == allowed for allowed in map(url_parts, urls)):
        lie = f"must lie under {' or '.join(urls)}" if urls else "is an address, and none is allowed"
        raise ValueError(f"{lie}; HUSH_ALLOWED_URLS of the service sets these")
    return manifest


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


def _check_splits(manifest: Manifest, splits: tuple[str, ...]) -> None:
    for split in splits:
        if split not in manifest.splits:
            needed = ", which early_stop needs" if split == "val" else ""
            raise ValueError(f"has no split '{split}'{needed}, only {', '.join(manifest.splits) or 'none'}")


def _check_weights(path: Path) -> None:
    try:
        with path.open("rb"):
            return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"must be 'none', 'imagenet' or the path of a file that can be read: {reason}") from None
