"""One attempt on one rank: training, and on rank 0 whoever watches it and the copy to MLflow."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack

from data_pipeline.reading.cache import ShardCache
from trainer import loop
from trainer.console import ConsoleSupervisor, headline
from trainer.errors import SpecRejectedError
from trainer.heartbeat import HeartbeatSupervisor
from trainer.ranks import Ranks
from trainer.replica_process import ReplicaProcess
from trainer.run_folder import RunFolder
from trainer.run_schema import AttemptContext, AttemptResult, EpochSummary, Progress
from trainer.supervisor import Order, Supervisor, Unsupervised
from trainer.timeline import mark

log = logging.getLogger(__name__)


class _Watchers:
    """All that watch this rank, as one Supervisor."""

    def __init__(self, run_dir: str, watcher: Supervisor, replica: ReplicaProcess | None) -> None:
        self._watcher, self._replica = watcher, replica
        self._run_dir = run_dir
        self._began_at: int | None = None
        self._has_stepped = False
        self.has_begun = False
        """Whether the run has got as far as its first step."""

    @property
    def order(self) -> Order:
        return self._watcher.order

    def began(self, finished_epochs: tuple[EpochSummary, ...]) -> None:
        self.has_begun = True
        log.info("training begins%s", f" after epoch {finished_epochs[-1].epoch}" if finished_epochs else "")
        if self._replica is not None:
            self._replica.begin()
        self._watcher.began(finished_epochs)

    def progress(self, progress: Progress) -> None:
        if progress.phase == "training" and not self._has_stepped:
            self._began_at = progress.step if self._began_at is None else self._began_at
            self._has_stepped = progress.step > self._began_at
            if self._has_stepped:
                mark(self._run_dir, "first_step")
        self._watcher.progress(progress)

    def epoch_finished(self, summary: EpochSummary) -> None:
        log.info("epoch %d is done: %s", summary.epoch, headline(summary))
        self._watcher.epoch_finished(summary)


def run_attempt(context: AttemptContext, ranks: Ranks, cache: ShardCache | None = None) -> AttemptResult:
    """Train, and publish the result as the very last file. Called by all ranks. `cache` is this machine's, for data
    that lies elsewhere.

    SpecRejectedError, where the job cannot be trained here; AbortedError, where the service has ended it.
    """
    if not ranks.is_main:
        return _train(context, ranks, _Watchers(context.run_dir, Unsupervised(), None), cache)
    with ExitStack() as stack:
        replica = stack.enter_context(ReplicaProcess(context)) if context.mlflow_uri is not None else None
        watcher = stack.enter_context(_watcher(context, replica))
        result = _train(context, ranks, _Watchers(context.run_dir, watcher, replica), cache)
        if replica is not None:
            replica.finish(result.outcome)
            run = replica.run()
            if run is not None:
                ids = {"mlflow_run_id": run.run_id, "mlflow_experiment_id": run.experiment_id}
                result = result.model_copy(update=ids)
        RunFolder(context.run_dir).finish(result)
    return result


def _train(context: AttemptContext, ranks: Ranks, watchers: _Watchers, cache: ShardCache | None) -> AttemptResult:
    try:
        return loop.train(context, ranks, watchers, cache)
    except ValueError as error:
        if watchers.has_begun:
            raise
        raise SpecRejectedError(str(error)) from error


def _watcher(context: AttemptContext, replica: ReplicaProcess | None) -> AbstractContextManager[Supervisor]:
    """The service where there is one, else the terminal."""
    if context.heartbeat_url is None:
        return ConsoleSupervisor()
    run = replica.run if replica is not None else (lambda: None)
    return HeartbeatSupervisor(context.heartbeat_url, context.heartbeat_token or "", run)
