"""python -m trainer.ray_entry ATTEMPT_DIR: the driver of one attempt on a Ray cluster. The trainer's only Ray import.

Ray Train starts the ranks, joins them into a process group and starts them again when one dies; all else is the
trainer's own: checkpoints, results and metrics go into the attempt's folder, which every node must see.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path

from data_pipeline.errors import QuarantineLimitError
from data_pipeline.reading.cache import cache_from
from data_pipeline.storage.atomic_file import write_atomically
from trainer.errors import TrainingFailedError
from trainer.run_schema import ATTEMPT_FILE, RESULT_FILE, AttemptContext, EpochSummary
from trainer.timeline import mark

FAILURE_FILE = "failure.txt"
"""Why starting again would not help. Ranks that find it end at once, so that Ray's restarts come to an end too."""

ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that imports everything once more
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the end of a job is noticed this late
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # imports on a busy machine
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Settings of Ray Train that have no other place; what the operator has set stays."""


def train_rank(config: dict[str, str]) -> None:
    """What each rank runs, in a process group that Ray Train has set up."""
    import ray.train  # noqa: PLC0415  # the driver imports this module before it has set ENVIRONMENT
    import torch  # noqa: PLC0415  # the driver needs none

    from trainer.attempt import run_attempt  # noqa: PLC0415
    from trainer.ranks import joined_ranks  # noqa: PLC0415

    context = read_context(Path(config["attempt_dir"]))
    if ray.train.get_context().get_world_rank() == 0:
        mark(context.run_dir, "rank_started")
    failure = Path(context.run_dir) / FAILURE_FILE
    if failure.exists():
        return

    def report(summary: EpochSummary) -> None:
        ray.train.report({"epoch": summary.epoch, **summary.metrics})

    resources = context.spec.resources
    torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
    try:
        with joined_ranks(use_gpu=resources.gpus_per_worker > 0) as ranks:
            run_attempt(context, ranks, on_epoch=report, cache=cache_from(os.environ))
    except (ValueError, TrainingFailedError, QuarantineLimitError) as error:
        write_atomically(failure, f"{traceback.format_exc()}\n{error}\n".encode())
        raise


def read_context(attempt_dir: Path) -> AttemptContext:
    """The attempt that this folder was made for."""
    return AttemptContext.model_validate_json((attempt_dir / ATTEMPT_FILE).read_bytes())


def run_on_ray(context: AttemptContext, attempt_dir: Path) -> None:
    """Run all ranks to their end; raises what Ray Train raises when it has given up."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    mark(context.run_dir, "driver")
    import ray  # noqa: PLC0415  # reads ENVIRONMENT

    # This file runs as __main__, whose functions Ray would send by value; the ranks import it by name instead.
    from trainer.ray_entry import train_rank as train_rank_by_name  # noqa: PLC0415

    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    mark(context.run_dir, "ray_connected")
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig  # noqa: PLC0415

    from trainer.ray_controller import DriverTrainer, JoinRanks

    mark(context.run_dir, "train_imported")
    resources = context.spec.resources
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": float(resources.gpus_per_worker)}
    trainer = DriverTrainer(
        train_rank_by_name,
        backend_config=JoinRanks(),
        train_loop_config={"attempt_dir": str(attempt_dir)},
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={name: number for name, number in per_worker.items() if number},
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=context.run_dir,
            failure_config=FailureConfig(max_failures=context.spec.fault_tolerance.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]  # mypy sees Ray Train v1's
        ),
    )
    trainer.fit()


def cause(error: Exception) -> str:
    """What a failing rank said, as text that ends with its traceback.

    When one rank fails the others lose their connection to it: what they say of that is no cause.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return str(error)
    told = {rank: str(failure) for rank, failure in failures.items()}

    def is_collateral(rank: int) -> bool:
        return any(word in told[rank] for word in ("Connection closed by peer", "Connection reset", "ncclRemoteError"))

    rank = min(told, key=lambda rank: (is_collateral(rank), rank))
    return f"rank {rank} of {len(told)} that failed:\n{told[rank]}"


def main(argv: list[str]) -> int:
    """Entry point: 0 when the attempt has a result."""
    if len(argv) != 1:
        print("usage: python -m trainer.ray_entry ATTEMPT_DIR", file=sys.stderr)
        return 2
    attempt_dir = Path(argv[0]).resolve()
    context = read_context(attempt_dir)
    run_dir = Path(context.run_dir)
    failure = run_dir / FAILURE_FILE
    failure.unlink(missing_ok=True)
    try:
        run_on_ray(context, attempt_dir)
    except Exception as error:  # Ray raises many kinds; each means that the ranks did not get through
        if not failure.exists():
            print(cause(error), file=sys.stderr)
            return 1
    if failure.exists():
        print(failure.read_text(), file=sys.stderr)
        return 1
    if not (run_dir / RESULT_FILE).exists():
        print(f"training ended without {RESULT_FILE} in {run_dir}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
