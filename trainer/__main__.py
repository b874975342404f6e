"""python -m trainer job.yaml: train one job here, without service, Ray or MLflow server; alone or under torchrun."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import secrets
import sys
from pathlib import Path

from data_pipeline.errors import QuarantineLimitError, StorageError
from data_pipeline.manifest import Manifest
from data_pipeline.reading.cache import cache_from
from trainer.run_schema import ATTEMPT_FILE, JOURNAL_FILE, QUARANTINE_FILE, AttemptContext
from trainer.spec import JobSpec
from trainer.spec_errors import load_spec

EPILOG = """\
examples:
  python -m trainer job.yaml
  torchrun --nproc-per-node 2 -m trainer job.yaml --run-dir runs/first
  python -m trainer job.yaml --run-dir runs/first --resume
  python -m trainer job.yaml --mlflow-uri sqlite:///mlflow.db

A job names at least its data:
  name: first
  data: {manifest: data/digits/manifest.json, image_size: 16, batch_size: 64, augmentation: none}
  model: {arch: small_cnn}

The run folder then holds journal.jsonl (metrics), label_noise/, examples/ and evaluation/ (a file an epoch), model.pt
and, last, result.json. Ctrl-C stops after the step under way; --resume goes on from the last checkpoint.

exit status: 0 done or stopped · 1 training failed · 2 the command or the job is wrong, one line says what
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        spec = load_spec(arguments.job)
        run_dir = arguments.run_dir or Path("runs") / spec.name
        _check_run_dir(run_dir, resume=arguments.resume)
        Manifest.load(spec.data.manifest)
        cache = cache_from(os.environ)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except StorageError as error:
        print(error, file=sys.stderr)
        return 1
    # From here on seconds of imports: whoever mistyped need not wait for them.
    import torch  # noqa: PLC0415

    from trainer.attempt import run_attempt  # noqa: PLC0415
    from trainer.errors import TrainingFailedError  # noqa: PLC0415
    from trainer.ranks import joined_ranks  # noqa: PLC0415

    context = AttemptContext(
        job_id=_job_id(spec, run_dir, resume=arguments.resume),
        attempt=1,
        spec=spec,
        run_dir=str(run_dir.resolve()),
        mlflow_uri=arguments.mlflow_uri,
    )
    if "LOCAL_WORLD_SIZE" in os.environ and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    try:
        with joined_ranks(use_gpu=spec.resources.gpus_per_worker > 0) as ranks:
            if ranks.is_main:
                _prepare_run_dir(run_dir, context)
            result = run_attempt(context, ranks, cache=cache)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (TrainingFailedError, QuarantineLimitError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    if ranks.is_main:
        epochs = f"{result.num_epochs} epoch{'' if result.num_epochs == 1 else 's'}"
        print(f"{result.outcome} after {epochs}, {result.num_steps} steps: {run_dir}")
        if (quarantine := run_dir / QUARANTINE_FILE).exists():
            num_bad = len(quarantine.read_text().splitlines())
            print(f"{num_bad} examples could not be read and were skipped: {quarantine} lists them")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Train one job here: one process, or one a rank under torchrun.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", type=Path, metavar="job.yaml", help="the job; see the example below")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="folder for what comes out (default: runs/<name>)")
    parser.add_argument("--mlflow-uri", metavar="URI", help="MLflow tracking server to show the run in (default: none)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest good checkpoint in the run folder")
    return parser


def _check_run_dir(run_dir: Path, *, resume: bool) -> None:
    """Refuse to overwrite a run that nobody asked to continue."""
    if not resume and (run_dir / JOURNAL_FILE).exists() and os.environ.get("RANK", "0") == "0":
        raise ValueError(f"--run-dir = {str(run_dir)!r}: holds a run already; give another folder, or --resume")


def _job_id(spec: JobSpec, run_dir: Path, *, resume: bool) -> str:
    """Another for each training, also of one name: MLflow's run is found by it. A resumed one keeps its own."""
    if resume:
        with contextlib.suppress(OSError, ValueError):
            return AttemptContext.model_validate_json((run_dir / ATTEMPT_FILE).read_bytes()).job_id
    return f"{spec.name}-{secrets.token_hex(4)}"


def _prepare_run_dir(run_dir: Path, context: AttemptContext) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / ATTEMPT_FILE).write_text(context.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"--run-dir = {str(run_dir)!r}: cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
