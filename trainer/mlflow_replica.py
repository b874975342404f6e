"""Copy a run folder to MLflow: what the journal names, in its order. The only module that imports mlflow.

    python -m trainer.mlflow_replica ATTEMPT_DIR            copy what MLflow does not have yet, and end
    python -m trainer.mlflow_replica ATTEMPT_DIR --follow   go on while training writes (see trainer.replica_process)

The folder is the truth, MLflow a copy for people to look at: when the server is away this tries again and training goes
on. What MLflow has is asked of MLflow, so copying twice, or going on after a crash on either side, makes no duplicates.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, assert_never

from data_pipeline.storage.atomic_file import write_atomically
from trainer.replica_process import MLFLOW_FILE, MlflowRun, Outcome, read_mlflow_run
from trainer.run_folder import RunFolder
from trainer.run_schema import (
    ATTEMPT_FILE,
    LABEL_NOISE_DIR,
    RESULT_FILE,
    AttemptContext,
    AttemptResult,
    JournalEntry,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

Item = TypeVar("Item")

EXPERIMENT = "hush"
KIND_TAG = {"mlflow.experimentKind": "custom_model_development"}
"""Has the MLflow UI show an experiment as trainings of models rather than as one of language models."""
JOB_TAG = "hush.job_id"
ATTEMPT_TAG = "hush.attempt"
IMAGE_KEY = "label_noise"

POLL_INTERVAL_S = 1.0
RETRY_INTERVAL_S = 3.0
GIVE_UP_S = 10.0
"""At the end of a training, how long a server that is away is waited for."""
FAREWELL_S = 2.0
"""How long the copy of a training that was killed has to say so. Short: the next attempt takes the run up soon."""
MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_CHARS = 6000

log = logging.getLogger("hush.mlflow")


# ---------------------------------------------------------------------------------------------------------- copying


class Replica:
    """The MLflow run of one attempt, and how far the journal has been copied to it."""

    def __init__(self, context: AttemptContext) -> None:
        import mlflow  # noqa: PLC0415  # takes seconds; whoever only asks for --help should not wait

        assert context.mlflow_uri is not None
        self._context = context
        self._folder = RunFolder(context.run_dir)
        self._client: MlflowClient = mlflow.MlflowClient(tracking_uri=context.mlflow_uri)
        self._run_id: str | None = None
        self._num_entries = 0
        self._steps_known: dict[str, set[int]] = {}
        self._images_known: set[str] = set()

    def connect(self) -> None:
        """Find or create the run, and learn what it holds."""
        if self._run_id is not None:
            return
        run = self._find() or self._create()
        write_atomically(self._folder.path / MLFLOW_FILE, run.model_dump_json().encode())
        self._client.update_run(run.run_id, status="RUNNING")
        self._client.set_tag(run.run_id, ATTEMPT_TAG, str(self._context.attempt))
        known = self._client.get_run(run.run_id).data
        missing = [param for param in self._params() if param.key not in known.params]  # MLflow never changes one
        for batch in _batches(missing, MAX_PARAMS_PER_BATCH):
            self._client.log_batch(run.run_id, params=batch)
        for name in known.metrics:
            history = self._client.get_metric_history(run.run_id, name)
            self._steps_known[name] = {metric.step for metric in history}
        self._images_known = {file.path for file in self._client.list_artifacts(run.run_id, "images")}
        self._run_id = run.run_id

    def catch_up(self) -> None:
        """Copy the journal's new entries, in order."""
        self.connect()
        pending: list[Metric] = []
        entries = self._folder.entries()
        for position, entry in enumerate(entries[self._num_entries :], start=self._num_entries + 1):
            pending += self._new_metrics(entry)
            if entry.file is not None or len(pending) >= MAX_METRICS_PER_BATCH or position == len(entries):
                self._log(pending)
                pending = []
                if entry.file is not None:
                    self._copy(entry.file, entry.epoch)
                self._num_entries = position

    def end(self, outcome: Outcome) -> None:
        """Close the run in MLflow."""
        self._client.set_terminated(self._connected_run(), status=_status(outcome))

    def mark_killed(self) -> None:
        """Show that the training is gone, unless the next attempt has taken up the run; if it does, it runs again."""
        known = read_mlflow_run(self._folder.path)
        if known is None:
            return
        tags = self._client.get_run(known.run_id).data.tags
        if tags.get(ATTEMPT_TAG) == str(self._context.attempt):
            self._client.set_terminated(known.run_id, status="KILLED")

    def _connected_run(self) -> str:
        assert self._run_id is not None, "connect comes first"
        return self._run_id

    def _find(self) -> MlflowRun | None:
        """The run of this attempt, of an earlier one, or one that was created for the job and then forgotten."""
        from mlflow.exceptions import MlflowException  # noqa: PLC0415  # see __init__

        known = read_mlflow_run(self._folder.path)
        for run_id in (known.run_id if known else None, self._context.mlflow_run_id):
            try:
                if run_id is not None:
                    info = self._client.get_run(run_id).info
                    return MlflowRun(run_id=info.run_id, experiment_id=info.experiment_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        tag = f"tags.`{JOB_TAG}` = '{self._context.job_id}'"
        found = self._client.search_runs([self._experiment_id()], filter_string=tag, max_results=1)
        return MlflowRun(run_id=found[0].info.run_id, experiment_id=found[0].info.experiment_id) if found else None

    def _create(self) -> MlflowRun:
        context = self._context
        tags = {JOB_TAG: context.job_id, ATTEMPT_TAG: str(context.attempt)}
        info = self._client.create_run(self._experiment_id(), run_name=context.spec.name, tags=tags).info
        return MlflowRun(run_id=info.run_id, experiment_id=info.experiment_id)

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415  # see __init__

        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            try:
                return str(self._client.create_experiment(EXPERIMENT, tags=KIND_TAG))
            except MlflowException:  # another job was faster
                experiment = self._client.get_experiment_by_name(EXPERIMENT)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)

    def _params(self) -> list[Any]:
        from mlflow.entities import Param  # noqa: PLC0415  # see __init__

        flat = flatten(self._context.spec.model_dump(mode="json"))
        return [Param(name, str(value)[:MAX_PARAM_CHARS]) for name, value in flat]

    def _new_metrics(self, entry: JournalEntry) -> list[Metric]:
        from mlflow.entities import Metric  # noqa: PLC0415  # see __init__

        return [
            Metric(name, value, entry.time_ms, entry.step)
            for name, value in entry.metrics.items()
            if entry.step not in self._steps_known.get(name, ())
        ]

    def _log(self, metrics: list[Metric]) -> None:
        for batch in _batches(metrics, MAX_METRICS_PER_BATCH):
            self._client.log_batch(self._connected_run(), metrics=batch)
            for metric in batch:
                self._steps_known.setdefault(metric.key, set()).add(metric.step)

    def _copy(self, name: str, epoch: int) -> None:
        path = self._folder.path / name
        if path.suffix == ".png" and name.startswith(f"{LABEL_NOISE_DIR}/"):
            self._copy_image(path, epoch)
        else:
            folder = "" if path.parent == self._folder.path else path.parent.name
            self._client.log_artifact(self._connected_run(), str(path), artifact_path=folder)

    def _copy_image(self, path: Path, epoch: int) -> None:
        """A picture with a step slider. MLflow would add a second one for a step, not replace the first."""
        from PIL import Image  # noqa: PLC0415  # see __init__

        if any(known.startswith(f"images/{IMAGE_KEY}+step+{epoch}+") for known in self._images_known):
            return
        with Image.open(path) as image:
            self._client.log_image(self._connected_run(), image, key=IMAGE_KEY, step=epoch)


def flatten(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of all leaves of nested dicts."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from flatten(inner, f"{name}.{key}" if name else str(key))


def _batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _status(outcome: Outcome) -> Literal["FINISHED", "KILLED", "FAILED"]:
    match outcome:
        case "succeeded":
            return "FINISHED"
        case "stopped":
            return "KILLED"
        case "failed":  # of a job that is taken up again, until then
            return "FAILED"
        case _:
            assert_never(outcome)


# ---------------------------------------------------------------------------------------------------------- process


class Parent:
    """What the training process says on our standard input: `begin`, `finish OUTCOME`; its end closes the input."""

    def __init__(self, on_killed: Callable[[], None]) -> None:
        """`on_killed` is called, and has FAREWELL_S, if the input closes without a `finish`."""
        self._on_killed = on_killed
        self.begun = threading.Event()
        self.finished = threading.Event()
        self.outcome: Outcome | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            match line.split():
                case ["begin"]:
                    self.begun.set()
                case ["finish", "succeeded" | "stopped" | "failed" as outcome]:
                    self.outcome = outcome
                    self.finished.set()
        if self.outcome is None:
            threading.Timer(FAREWELL_S, os._exit, [0]).start()
            try:
                self._on_killed()
            except Exception as error:
                log.warning("MLflow was not told that the training was killed: %s", error)
        os._exit(0)  # training is gone, and whoever takes it up will go on copying: leave at once, even amid a request


def follow(context: AttemptContext) -> int:
    """Copy what training writes until it says that it has finished; 0 if MLflow then has everything."""
    replica: Replica | None = None
    parent = Parent(lambda: replica.mark_killed() if replica else None)
    last_success_s = time.monotonic()
    while True:
        outcome = parent.outcome  # asked before copying: after `finish` nothing is added to the journal
        try:
            replica = replica or Replica(context)
            replica.connect()
            if parent.begun.is_set():
                replica.catch_up()
            last_success_s = time.monotonic()
            if outcome is not None:
                replica.end(outcome)
                return 0
        except Exception as error:  # whatever a server, a proxy or a full disk may do: training goes on
            log.warning("MLflow at %s: %s", context.mlflow_uri, " ".join(str(error).split())[:300])
            if outcome is not None and time.monotonic() - last_success_s > GIVE_UP_S:
                return 1
            time.sleep(RETRY_INTERVAL_S)
            continue
        parent.finished.wait(POLL_INTERVAL_S)


def replay(context: AttemptContext) -> int:
    """Copy what the folder holds now."""
    replica = Replica(context)
    replica.catch_up()
    result = Path(context.run_dir) / RESULT_FILE
    if result.exists():
        replica.end(AttemptResult.model_validate_json(result.read_bytes()).outcome)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.mlflow_replica", description="Copy a run folder to MLflow."
    )
    parser.add_argument("attempt_dir", type=Path, help="folder of an attempt; its attempt.json says where MLflow is")
    parser.add_argument("--mlflow-uri", help="another tracking server than attempt.json names")
    parser.add_argument("--follow", action="store_true", help="go on while training writes (started by the trainer)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # A request that hangs must not hold up the next try, nor the end of training.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    context = AttemptContext.model_validate_json((arguments.attempt_dir / ATTEMPT_FILE).read_bytes())
    moved = {"run_dir": str(arguments.attempt_dir), "mlflow_uri": arguments.mlflow_uri or context.mlflow_uri}
    context = context.model_copy(update=moved)
    if context.mlflow_uri is None:
        parser.error(f"{arguments.attempt_dir / ATTEMPT_FILE} names no MLflow server; give --mlflow-uri")
    if arguments.follow:
        os.nice(10)
        return follow(context)
    return replay(context)


if __name__ == "__main__":
    sys.exit(main())
