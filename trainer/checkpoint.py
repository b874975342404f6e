"""Checkpoints: all that the next step depends on, in one file whose name holds the sha256 of its content.

A file appears under its name by one rename, after its bytes are on the disk; one that was torn anyway (a full disk, a
copy cut short) does not match its name and is passed over for the one before. Nothing but tensors and plain values is
unpickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from data_pipeline.loader import LoaderState
from data_pipeline.storage.atomic_file import publish, sha256_of, write_aside
from trainer.run_schema import CHECKPOINTS_DIR

NUM_KEPT = 2


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps. The mappings hold tensors, numbers, text, and lists and dicts of those."""

    loader: LoaderState
    """Where the run stands in its data: the epoch under way, from 1 (one past the last when all are done), and the
    batches done of it; and what the order of the examples depends on."""
    step: int
    """Optimizer steps done since the job began."""
    journal_bytes: int
    """Length of journal.jsonl: what the journal holds beyond was written after this checkpoint."""
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    target: Mapping[str, Any]
    """What the target has learned, of all ranks."""
    record: Mapping[str, Any]
    """The per-example record."""
    meters: Mapping[str, Any]
    """Sums of the epoch under way."""
    training_noise: Mapping[str, Any]
    """Label noise of the epoch under way, as its steps told it."""


def save(run_dir: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into the run's folder, and keep NUM_KEPT: it and those before it.

    One of a later step was passed over as torn, or this run would have gone on from there: it is deleted too.
    """
    folder = run_dir / CHECKPOINTS_DIR
    stem = f"step_{checkpoint.step:09d}_epoch_{checkpoint.loader['epoch']:04d}"
    content = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    aside = write_aside(folder / stem, lambda path: torch.save(content, path))
    path = folder / f"{stem}.{sha256_of(aside)}.pt"
    publish(aside, path)
    all_paths = _newest_first([run_dir])
    position = all_paths.index(path)
    for useless in (*all_paths[:position], *all_paths[position + NUM_KEPT :]):
        useless.unlink()
    return path


def newest_good(run_dirs: Iterable[Path]) -> Path | None:
    """The newest checkpoint in these run folders whose content matches its name."""
    return next((path for path in _newest_first(run_dirs) if path.name.endswith(f".{sha256_of(path)}.pt")), None)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, its tensors on the CPU; ValueError if it holds other entries than this version writes."""
    content = cast("dict[str, Any]", torch.load(path, map_location="cpu", weights_only=True))
    expected = {field.name for field in dataclasses.fields(Checkpoint)}
    wrong = [f"lacks {name!r}" for name in sorted(expected - content.keys())]
    wrong += [f"has {name!r} too many" for name in sorted(content.keys() - expected)]
    if wrong:
        raise ValueError(f"checkpoint {path} was written by another version of Hush: it {', '.join(wrong)}")
    return Checkpoint(**content)


def run_dir_of(path: Path) -> Path:
    """The run folder that a checkpoint lies in."""
    return path.parent.parent


def _newest_first(run_dirs: Iterable[Path]) -> list[Path]:
    """By step, then epoch; of equal ones, that of the folder named first comes first."""
    paths = [path for run_dir in run_dirs for path in (run_dir / CHECKPOINTS_DIR).glob("step_*.pt")]
    return sorted(paths, key=lambda path: path.name.split(".")[0], reverse=True)
