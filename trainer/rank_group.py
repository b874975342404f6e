"""The ranks that a driver starts: those of an attempt, or of a spare. Knows no Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.handover import handed_over
from trainer.run_schema import ATTEMPT_FILE, AttemptContext

SPARE_CPUS = 0.001
"""What a rank of a spare takes of Ray's CPUs: as good as nothing. Whoever hands it an attempt counts that one's."""


@dataclass(frozen=True)
class RankGroup:
    """The ranks that a driver starts."""

    config: dict[str, str]
    """What `train_rank` is told."""
    num_workers: int
    resources_per_worker: dict[str, float]
    folder: Path
    """Where Ray Train may keep its files."""
    max_failures: Callable[[], int]
    """How often the ranks may be started again; asked when they have failed."""


def group_of_attempt(context: AttemptContext, attempt_dir: Path) -> RankGroup:
    """The ranks of an attempt."""
    resources = context.spec.resources
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": float(resources.gpus_per_worker)}
    return RankGroup(
        config={"attempt_dir": str(attempt_dir)},
        num_workers=resources.num_workers,
        resources_per_worker={name: number for name, number in per_worker.items() if number},
        folder=Path(context.run_dir),
        max_failures=lambda: context.spec.fault_tolerance.max_failures,
    )


def group_of_spare(spare_dir: Path, num_workers: int) -> RankGroup:
    """The ranks of a spare."""

    def max_failures() -> int:
        context = context_handed_over(spare_dir)
        return 0 if context is None else context.spec.fault_tolerance.max_failures

    config = {"spare_dir": str(spare_dir)}
    return RankGroup(config, num_workers, {"CPU": SPARE_CPUS}, spare_dir, max_failures)


def context_handed_over(spare_dir: Path) -> AttemptContext | None:
    """The attempt that a spare was handed; None: none yet, or never one."""
    handover = handed_over(spare_dir)
    if handover is None or handover.attempt_dir is None:
        return None
    return read_context(Path(handover.attempt_dir))


def read_context(attempt_dir: Path) -> AttemptContext:
    """The attempt that this folder was made for."""
    return AttemptContext.model_validate_json((attempt_dir / ATTEMPT_FILE).read_bytes())
