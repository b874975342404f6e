"""python -m trainer.ray_entry ATTEMPT_DIR: the driver of one attempt on a Ray cluster.

Ray Train starts the ranks, joins them into a process group and starts them again when one dies (trainer.ray_controller
and trainer.ray_rank, the only other modules that know Ray); all else is the trainer's own: checkpoints, results and
metrics go into the attempt's folder, which every node must see.

python -m trainer.ray_entry --spare SPARE_DIR NUM_WORKERS: the same, started before there is an attempt. Its ranks have
imported everything and formed their group when they are handed one (trainer.handover).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

from data_pipeline.reading.cache import cache_from
from trainer.errors import AbortedError
from trainer.failure import failure_of_driver, failure_of_ranks, failure_recorded, forget, read_failure, record
from trainer.handover import decline, wait_for_handover
from trainer.output_log import driver_log, log_plainly, output_kept_in, rank_log
from trainer.rank_group import RankGroup, context_handed_over, group_of_attempt, group_of_spare, read_context
from trainer.run_schema import RESULT_FILE, AttemptContext, AttemptFailure
from trainer.timeline import mark

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

    rank = ray.train.get_context().get_world_rank()
    attempt_dir = _attempt_dir(config, rank)
    if attempt_dir is None:
        return
    context = read_context(attempt_dir)
    run_dir = Path(context.run_dir)
    earlier = read_failure(run_dir)
    if earlier is not None and earlier.is_final:
        return  # at once, so that Ray's restarts come to an end too
    forget(run_dir)
    if rank == 0:
        mark(run_dir, "rank_started")
    who = f"job {context.job_id}, attempt {context.attempt}, rank {rank} of {context.spec.resources.num_workers}"
    with output_kept_in(rank_log(run_dir, rank), who), failure_recorded(run_dir, rank):
        log_plainly()
        _train(context)


def _attempt_dir(config: dict[str, str], rank: int) -> Path | None:
    """The attempt's folder, which a spare waits for; None: there will be none."""
    if "spare_dir" not in config:
        return Path(config["attempt_dir"])
    spare_dir = Path(config["spare_dir"])
    if rank == 0:
        mark(spare_dir, "waiting")
    handover = wait_for_handover(spare_dir)
    return None if handover.attempt_dir is None else Path(handover.attempt_dir)


def _train(context: AttemptContext) -> None:
    import torch  # noqa: PLC0415  # the driver needs none

    from trainer.attempt import run_attempt  # noqa: PLC0415
    from trainer.ranks import joined_ranks  # noqa: PLC0415

    resources = context.spec.resources
    torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
    with joined_ranks(use_gpu=resources.gpus_per_worker > 0) as ranks, contextlib.suppress(AbortedError):
        run_attempt(context, ranks, cache=cache_from(os.environ))


def run_on_ray(group: RankGroup) -> None:
    """Run all ranks to their end; raises what Ray Train raises when it has given up."""
    mark(group.folder, "driver")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray  # noqa: PLC0415  # reads ENVIRONMENT

    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    mark(group.folder, "ray_connected")
    from trainer.ray_controller import run_ranks  # noqa: PLC0415  # takes seconds, in which Ray starts processes

    # This file runs as __main__, whose functions Ray would send by value; the ranks import it by name instead.
    from trainer.ray_entry import train_rank as train_rank_by_name  # noqa: PLC0415

    mark(group.folder, "train_imported")
    run_ranks(train_rank_by_name, group)


def failure_on_ray(error: Exception) -> AttemptFailure:
    """What the driver makes of what Ray Train has raised."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    return failure_of_ranks(failures) if failures else failure_of_driver(error)


def run_and_record(context: AttemptContext, attempt_dir: Path) -> None:
    """Run all ranks; what the driver says is kept, and why they failed where none of them could tell."""
    run_dir = Path(context.run_dir)
    with output_kept_in(driver_log(run_dir), f"job {context.job_id}, attempt {context.attempt}, driver"):
        log_plainly()
        try:
            run_on_ray(group_of_attempt(context, attempt_dir))
        except Exception as error:  # Ray raises many kinds; each means that the ranks did not get through
            record(run_dir, failure_on_ray(error))
        if failure := read_failure(run_dir):
            print(failure.traceback, file=sys.stderr)


def run_spare(spare_dir: Path, num_workers: int) -> int:
    """Be a spare, and the driver of what it is handed. 0 when that has a result, or nothing was handed over."""
    try:
        run_on_ray(group_of_spare(spare_dir, num_workers))
    except Exception as error:
        decline(spare_dir)
        context = context_handed_over(spare_dir)
        if context is None:
            raise
        record(Path(context.run_dir), failure_on_ray(error))
    context = context_handed_over(spare_dir)
    return 0 if context is None else conclude(context)


def conclude(context: AttemptContext) -> int:
    """0 when the attempt has a result; else say why there is none."""
    run_dir = Path(context.run_dir)
    if failure := read_failure(run_dir):
        print(f"{failure.traceback}\n{failure.reason}: {failure.message}", file=sys.stderr)
        return 1
    if not (run_dir / RESULT_FILE).exists():
        print(f"training ended without {RESULT_FILE} in {run_dir}", file=sys.stderr)
        return 1
    return 0


def main(argv: list[str]) -> int:
    """Entry point: 0 when the attempt has a result."""
    match argv:
        case ["--spare", folder, num_workers]:
            return run_spare(Path(folder).resolve(), int(num_workers))
        case [folder]:
            attempt_dir = Path(folder).resolve()
            context = read_context(attempt_dir)
            forget(Path(context.run_dir))
            run_and_record(context, attempt_dir)
            return conclude(context)
        case _:
            usage = "usage: python -m trainer.ray_entry ATTEMPT_DIR | --spare SPARE_DIR NUM_WORKERS"
            print(usage, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
