"""Checks data sets, one after the other, beside the requests: a large one takes as long as it takes to read it all."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from data_pipeline.errors import StorageError
from data_pipeline.manifest import Manifest
from service.data_set_schemas import CheckStatus, CheckView, ProblemView
from service.store.data_sets import DataSetRecord, DataSets

if TYPE_CHECKING:
    from data_pipeline.check import Problem

logger = logging.getLogger(__name__)

TELL_S: Final = 2.0
NUM_PROCESSES: Final = 2
"""Of their own, for data sets of more than one shard: the threads here answer requests."""
MAX_PROBLEMS: Final = 100
"""Kept of a check."""


class _StoppedError(Exception):
    """The service ends, or another check of the data set has begun."""


class DataSetChecker:
    """The checks of one process."""

    def __init__(self, data_sets: DataSets, load: Callable[[str], Manifest]) -> None:
        """`load` reads a manifest, or raises ValueError or StorageError; it checks whether it may be read, too."""
        self._data_sets = data_sets
        self._load = load
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="check")

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    def begin(self, data_set: DataSetRecord, now: datetime) -> CheckView | None:
        """Check it as soon as those before it are done; None if a check of it runs already."""
        view = self._data_sets.begin_check(data_set.id, now)
        if view is not None:
            self._pool.submit(self._run, data_set, view)
        return view

    def stop(self) -> None:
        """End the check that runs; those that wait are interrupted, too."""
        self._stopping.set()
        self._pool.shutdown()

    def _run(self, data_set: DataSetRecord, view: CheckView) -> None:
        progress = _Progress(self._data_sets, data_set.id, view, self._stopping)
        try:
            progress.end(*self._check(data_set, progress))
        except _StoppedError:
            progress.end("interrupted")
        except (ValueError, OSError, StorageError) as error:
            progress.end("failed", error=str(error))
        except Exception as error:
            logger.exception("data set %s could not be checked", data_set.name)
            progress.end("failed", error=f"{type(error).__name__}; the service's log says more")

    def _check(self, data_set: DataSetRecord, progress: _Progress) -> tuple[CheckStatus, list[Problem]]:
        from data_pipeline.check import Problem, check  # noqa: PLC0415 - decoders that nothing else here needs

        progress(0)
        manifest = self._load(data_set.manifest)
        if manifest.digest != data_set.summary.digest:
            reason = f"its digest is {manifest.digest}, {data_set.summary.digest} was registered"
            return "problems", [Problem("manifest.json", None, reason)]
        problems = check(manifest, num_processes=NUM_PROCESSES, on_step=progress)
        return "problems" if problems else "ok", problems


class _Progress:
    """Keeps how far a check has come, and ends it by an exception where it should go no further."""

    def __init__(self, data_sets: DataSets, data_set_id: str, view: CheckView, stopping: threading.Event) -> None:
        self._data_sets, self._id, self._view, self._stopping = data_sets, data_set_id, view, stopping
        self._told_at = time.monotonic()
        self._num_checked = 0

    def __call__(self, num_examples: int) -> None:
        """So many more have been looked at."""
        self._num_checked += num_examples
        if self._stopping.is_set():
            raise _StoppedError
        if time.monotonic() - self._told_at >= TELL_S:
            self._told_at = time.monotonic()
            if not self._keep("running"):
                raise _StoppedError

    def end(self, status: CheckStatus, problems: list[Problem] | None = None, error: str | None = None) -> None:
        """Keep how it ended."""
        found = problems or []
        views = tuple(ProblemView(file=p.file, example_id=p.example_id, reason=p.reason) for p in found[:MAX_PROBLEMS])
        self._keep(status, problems=views, num_problems=len(found), error=error)

    def _keep(
        self,
        status: CheckStatus,
        problems: tuple[ProblemView, ...] = (),
        num_problems: int = 0,
        error: str | None = None,
    ) -> bool:
        view = CheckView(
            status=status,
            started_at=self._view.started_at,
            updated_at=datetime.now(UTC),
            num_checked=self._num_checked,
            num_problems=num_problems,
            problems=problems,
            error=error,
        )
        return self._data_sets.keep_check(self._id, view)
