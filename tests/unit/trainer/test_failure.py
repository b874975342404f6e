"""What is recorded of an error, and who records it."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.exceptions import OutOfMemoryError as RayOutOfMemoryError

from data_pipeline.errors import QuarantineLimitError, StorageError
from trainer.errors import SpecRejectedError, TrainingFailedError, diverged
from trainer.failure import (
    NUM_LINES,
    failure_of,
    failure_of_driver,
    failure_of_ranks,
    failure_recorded,
    forget,
    read_failure,
    record,
)
from trainer.run_schema import FAILURE_FILE

PEER_GONE = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]:1234")


class RankFailedError(Exception):
    """Shaped as Ray Train's UserExceptionWithTraceback."""

    def __init__(self, error: Exception, text: str) -> None:
        super().__init__(text)
        self._base_exc = error


class WorkerHealthCheckFailedError(Exception):
    """Shaped as Ray Train's error of that name."""

    def __init__(self, text: str, failure: Exception) -> None:
        super().__init__(text)
        self.health_check_failure = failure


@pytest.mark.parametrize(
    ("error", "reason", "is_final"),
    [
        (SpecRejectedError("resources.gpus_per_worker = 1: no GPU"), "spec_rejected", True),
        (QuarantineLimitError("9 of 10 are unreadable"), "data_quarantine_limit", True),
        (diverged("the weights", 1e30), "non_finite_loss", True),
        (TrainingFailedError("no way on"), "attempt_failed", True),
        (ValueError("a bug, and the same one tomorrow"), "attempt_failed", True),
        (StorageError("s3: Connection reset by peer"), "data_unavailable", False),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", False),
        (MemoryError(), "out_of_memory", False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory", False),
        (PEER_GONE, "worker_lost", False),
        (RuntimeError("something else"), "attempt_failed", False),
        (OSError(errno.ENOSPC, "No space left on device"), "attempt_failed", False),
    ],
)
def test_kinds_of_errors(error: Exception, reason: str, *, is_final: bool) -> None:
    failure = failure_of(error, 3)
    assert (failure.reason, failure.is_final, failure.rank) == (reason, is_final, 3)


def test_torchs_cpu_allocator_is_understood() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert failure_of(raised.value, 0).reason == "out_of_memory"


def fail_deep(depth: int) -> None:
    if depth == 0:
        raise KeyError("a key\nthat is long")
    fail_deep(depth - 1)


def test_the_end_of_the_traceback_is_kept() -> None:
    with pytest.raises(KeyError) as raised:
        fail_deep(1)
    failure = failure_of(raised.value, 0)
    assert failure.traceback.splitlines()[-1].startswith("KeyError")
    assert "fail_deep(depth - 1)" in failure.traceback
    assert len(failure.traceback.splitlines()) <= NUM_LINES
    assert "\n" not in failure.message


def test_our_own_words_stand_alone_and_others_are_named() -> None:
    assert failure_of(SpecRejectedError("data.manifest = 'x'"), 0).message == "data.manifest = 'x'"
    assert failure_of(OSError("away"), 0).message == "OSError: away"
    assert failure_of(MemoryError(), 0).message == "MemoryError"


def test_the_first_rank_that_fails_knows_the_cause(tmp_path: Path) -> None:
    record(tmp_path, failure_of(RuntimeError("first"), 1))
    record(tmp_path, failure_of(RuntimeError("second"), 0))
    found = read_failure(tmp_path)
    assert found is not None
    assert (found.message, found.rank) == ("RuntimeError: first", 1)
    assert [path.name for path in tmp_path.iterdir()] == [FAILURE_FILE]
    forget(tmp_path)
    assert read_failure(tmp_path) is None


def test_ranks_that_fail_together_leave_one_whole_record(tmp_path: Path) -> None:
    begin = threading.Barrier(8)

    def fail(rank: int) -> None:
        begin.wait()
        record(tmp_path, failure_of(RuntimeError("x" * 10_000), rank))

    threads = [threading.Thread(target=fail, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_failure(tmp_path) is not None
    assert [path.name for path in tmp_path.iterdir()] == [FAILURE_FILE]


def test_a_rank_that_lost_another_does_not_speak_of_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError), failure_recorded(tmp_path, 0):
        raise PEER_GONE
    assert read_failure(tmp_path) is None
    with pytest.raises(StorageError), failure_recorded(tmp_path, 1):
        raise StorageError("away")
    found = read_failure(tmp_path)
    assert found is not None
    assert (found.reason, found.rank) == ("data_unavailable", 1)
    assert "StorageError: away" in capsys.readouterr().err


def test_the_driver_tells_a_rank_that_died_from_one_that_lost_it() -> None:
    died = WorkerHealthCheckFailedError("A worker health check failed.\nThe actor is dead.", ActorDiedError())
    failure = failure_of_ranks({0: RankFailedError(PEER_GONE, "Traceback…\nRuntimeError: closed"), 1: died})
    assert (failure.reason, failure.rank) == ("worker_lost", 1)
    assert failure.message == "rank 1 died: The actor is dead."
    assert failure.traceback.startswith("A worker health check failed.")


def test_the_driver_knows_rays_out_of_memory() -> None:
    killed = WorkerHealthCheckFailedError("killed due to memory pressure", RayOutOfMemoryError("node is low"))
    assert failure_of_ranks({0: killed}).reason == "out_of_memory"


def test_the_driver_hands_on_what_a_rank_could_not_record() -> None:
    text = "Traceback (most recent call last):\n  somewhere\nOSError: No space left on device"
    failure = failure_of_ranks({2: RankFailedError(OSError(errno.ENOSPC, "No space left on device"), text)})
    assert (failure.reason, failure.rank, failure.traceback) == ("attempt_failed", 2, text)


def test_the_drivers_own_error() -> None:
    failure = failure_of_driver(ConnectionError("no head"))
    assert (failure.reason, failure.rank, failure.message) == ("attempt_failed", None, "ConnectionError: no head")
