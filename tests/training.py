"""Small real trainings for tests: scikit-learn's digits with injected noise, and crops of real photographs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data_pipeline.building.build import BuildOptions
from data_pipeline.examples import open_split
from data_pipeline.manifest import Manifest
from data_pipeline.spec import PairflipCorruption
from tests.sample_data import build_digits
from trainer import loop
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder
from trainer.run_schema import AttemptContext, AttemptResult, EpochSummary, JournalEntry, Progress
from trainer.spec import JobSpec
from trainer.supervisor import Order

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))

IVON = {"kind": "ivon", "lr": 0.5, "hess_init": 1.0, "ess": 100_000, "beta2": 0.999}
SGD = {"kind": "sgd", "lr": 0.05}
BSAM = {"kind": "bsam", "lr": 0.1, "ess": 100_000}


def noisy_digits(out: Path) -> Path:
    """Digits with 30% of the training labels flipped to the next class; path of the manifest."""
    build_digits(out, BuildOptions(corruption=PairflipCorruption(rate=0.3)))
    return out / "manifest.json"


def damage(manifest: Path, split: str, count: int) -> set[str]:
    """Change a byte of so many examples of a split; their ids."""
    table = open_split(Manifest.load(manifest), split)
    rows = range(0, len(table), len(table) // count)[:count]
    for row in rows:
        with (manifest.parent / table.shard_of(row)).open("r+b") as file:
            file.seek(int(table.offsets[row]) + int(table.lengths[row]) // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 0x10]))
    return {table.example_ids[row] for row in rows}


def digits_spec(manifest: Path, **changes: object) -> JobSpec:
    """A job on the digits that takes seconds; `changes` replace top-level fields."""
    job = {
        "name": "digits",
        "data": {"manifest": str(manifest), "image_size": 8, "batch_size": 64, "augmentation": "none"},
        "model": {"arch": "small_cnn"},
        "method": IVON,
        "schedule": {"epochs": 2},
        "label_noise": {"num_examples": 150, "num_mc_samples": 4},
    }
    return JobSpec.model_validate({**job, **changes})


def context_for(spec: JobSpec, run_dir: Path, **more: object) -> AttemptContext:
    """An attempt in `run_dir`."""
    return AttemptContext.model_validate(
        {"job_id": "job-1", "attempt": 1, "spec": spec.model_dump(), "run_dir": str(run_dir), **more}
    )


@dataclass
class Watcher:
    """Remembers what it is told, and gives its order after so many reports of an epoch."""

    stop_after_epoch: int | None = None
    stop_in: str | None = None
    """Stop as soon as this phase has begun."""
    last_order: Order = "stop"
    epochs: list[EpochSummary] = field(default_factory=list)
    before: tuple[EpochSummary, ...] = ()
    phases: list[str] = field(default_factory=list)

    @property
    def order(self) -> Order:
        is_over = self.stop_after_epoch is not None and len(self.epochs) >= self.stop_after_epoch
        is_over |= self.stop_in in self.phases
        return self.last_order if is_over else "continue"

    def began(self, finished_epochs: tuple[EpochSummary, ...]) -> None:
        self.before = finished_epochs

    def progress(self, progress: Progress) -> None:
        self.phases.append(progress.phase)

    def epoch_finished(self, summary: EpochSummary) -> None:
        self.epochs.append(summary)


def train_alone(context: AttemptContext, watcher: Watcher | None = None) -> AttemptResult:
    """Train in this process, and publish the result."""
    result = loop.train(context, ALONE, watcher or Watcher())
    RunFolder(context.run_dir).finish(result)
    return result


def figures(run_dir: Path) -> list[tuple[int, int, dict[str, float]]]:
    """(step, epoch, metrics) of the journal, without what depends on the clock."""
    lines = (run_dir / "journal.jsonl").read_text().splitlines()
    entries = [JournalEntry.model_validate_json(line) for line in lines]
    timed = {"train/images_per_s"}
    return [
        (entry.step, entry.epoch, {name: value for name, value in entry.metrics.items() if name not in timed})
        for entry in entries
        if entry.metrics
    ]


def published(run_dir: Path) -> list[str]:
    """Files that the journal names, in its order."""
    lines = (run_dir / "journal.jsonl").read_text().splitlines()
    return [entry["file"] for entry in map(json.loads, lines) if "file" in entry]
