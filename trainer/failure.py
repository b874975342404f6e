"""Why an attempt failed: told by the rank that failed first, or by the driver where a rank died speechless.

When one rank fails, the others lose their connection to it. What they say of that is no cause and is not recorded.

Classes of torch and Ray are known by their names here: the driver needs neither to say what happened.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from data_pipeline.errors import QuarantineLimitError, StorageError
from data_pipeline.storage.atomic_file import publish, write_aside
from trainer.errors import DivergedError, SpecRejectedError, TrainingFailedError
from trainer.run_schema import FAILURE_FILE, AttemptFailure, FailureReason

NUM_LINES: Final = 30
"""Lines of a traceback that are kept: its end, where the error stands."""
MESSAGE_CHARS: Final = 1000

OURS: Final[Mapping[type[Exception], FailureReason]] = {
    SpecRejectedError: "spec_rejected",
    QuarantineLimitError: "data_quarantine_limit",
    DivergedError: "non_finite_loss",
    StorageError: "data_unavailable",
}
COLLATERAL: Final = ("Connection closed by peer", "Connection reset", "Broken pipe", "ncclRemoteError")
"""What a rank says that has lost another one."""
NO_MEMORY: Final = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "STATUS_ALLOC_FAILED")
"""What torch's CPU allocator and the CUDA libraries say in a plain RuntimeError."""
LOST_WORKER: Final = frozenset(
    {
        "RayActorError",
        "NodeDiedError",
        "WorkerCrashedError",
        "WorkerHealthCheckFailedError",
        "WorkerHealthCheckTimeoutError",
        "WorkerGroupStartupFailedError",
    }
)
"""Ray's classes of errors that mean: a rank's process or machine is gone."""
WRAPPED: Final = ("_base_exc", "health_check_failure", "controller_failure")
"""Where Ray Train's errors keep the one that they are about."""


def failure_of(error: BaseException, rank: int | None) -> AttemptFailure:
    """What to record of an error."""
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return AttemptFailure(
        reason=reason_of(error),
        message=_one_line(error),
        traceback="\n".join(lines[-NUM_LINES:]),
        rank=rank,
        is_final=isinstance(error, (ValueError, TrainingFailedError, QuarantineLimitError)),
    )


def reason_of(error: BaseException) -> FailureReason:
    """The kind of an error."""
    ours = next((reason for kind, reason in OURS.items() if isinstance(error, kind)), None)
    if ours is not None:
        return ours
    if _is_out_of_memory(error):
        return "out_of_memory"
    return "worker_lost" if _names(error) & LOST_WORKER or is_collateral(error) else "attempt_failed"


def is_collateral(error: BaseException) -> bool:
    """Whether a rank only says that it has lost another one. (A storage that hangs up is a StorageError.)"""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in COLLATERAL)


def failure_of_ranks(failures: Mapping[int, BaseException]) -> AttemptFailure:
    """What the driver makes of the errors of its ranks, by rank, as Ray Train hands them on."""
    causes = {rank: unwrapped(error) for rank, error in failures.items()}
    rank = min(causes, key=lambda rank: (is_collateral(causes[rank]), rank))
    return _as_ray_tells(failures[rank], rank)


def failure_of_driver(error: BaseException) -> AttemptFailure:
    """What the driver makes of an error of its own, or of Ray Train's controller."""
    return _as_ray_tells(error, None) if unwrapped(error) is not error else failure_of(error, None)


def unwrapped(error: BaseException) -> BaseException:
    """The error that an error of Ray Train is about."""
    inner = next((getattr(error, name) for name in WRAPPED if hasattr(error, name)), None)
    return unwrapped(inner) if isinstance(inner, BaseException) else error


def _as_ray_tells(error: BaseException, rank: int | None) -> AttemptFailure:
    """An error that came here from another process: its traceback is in its text."""
    failure = failure_of(unwrapped(error), rank)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    died = {"message": f"rank {rank} died: {lines[-1].strip()}"} if failure.reason == "worker_lost" else {}
    return failure.model_copy(update={"traceback": "\n".join(lines[-NUM_LINES:]), **died})


def _one_line(error: BaseException) -> str:
    """What an error says; what is not ours to word is named with its class."""
    text = " ".join(str(error).split())
    is_ours = isinstance(error, (ValueError, TrainingFailedError, QuarantineLimitError, StorageError)) and text
    return (text if is_ours else f"{type(error).__name__}: {text}".rstrip(": "))[:MESSAGE_CHARS]


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or "OutOfMemoryError" in _names(error):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


# ------------------------------------------------------------------------------------------------------------ the file


def read_failure(run_dir: Path) -> AttemptFailure | None:
    """What was recorded; None if nothing was, or nothing that can be read."""
    try:
        return AttemptFailure.model_validate_json((run_dir / FAILURE_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def record(run_dir: Path, failure: AttemptFailure) -> None:
    """Write failure.json, whole, unless somebody was first: that one knows the cause."""
    path = run_dir / FAILURE_FILE
    aside = write_aside(path, lambda aside: aside.write_text(failure.model_dump_json(indent=2) + "\n"))
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            publish(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def forget(run_dir: Path) -> None:
    """Make room for what the start that now begins may fail of."""
    (run_dir / FAILURE_FILE).unlink(missing_ok=True)


@contextmanager
def failure_recorded(run_dir: Path, rank: int) -> Iterator[None]:
    """Record and print what a rank fails of, and let it go on its way."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        if not is_collateral(error):
            with suppress(OSError):  # a full disk, say: Ray hands on what is raised, and the driver tries again
                record(run_dir, failure_of(error, rank))
        raise
