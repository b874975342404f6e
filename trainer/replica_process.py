"""The process beside rank 0 that copies the run folder to MLflow (see trainer.mlflow_replica).

A process and not a thread: importing mlflow takes about seven CPU-seconds, which in a thread would hold the
interpreter's lock against training's first steps. It runs at low priority, ends with its parent, and nothing it does
can fail the training.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.errors import AbortedError
from trainer.run_schema import AttemptContext

MLFLOW_FILE: Final = "mlflow.json"
"""MlflowRun, in the attempt's folder, as soon as the run is known."""
Outcome = Literal["succeeded", "stopped", "failed"]

FINISH_TIMEOUT_S: Final[Mapping[Outcome, float]] = {"succeeded": 120.0, "failed": 20.0, "stopped": 3.0}
"""How long the end of a training waits for a server that is taking things in; one that is away is given up sooner.
What went wrong should be told soon, and who has cancelled a job waits for it."""

log = logging.getLogger(__name__)


class MlflowRun(BaseModel):
    """Which MLflow run shows an attempt."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    experiment_id: str


def read_mlflow_run(run_dir: Path) -> MlflowRun | None:
    """The MLflow run of an attempt, once it is known."""
    try:
        return MlflowRun.model_validate_json((run_dir / MLFLOW_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


class ReplicaProcess:
    """Starts the process at once, so that the run exists early; lets it read the journal once that is ready."""

    def __init__(self, context: AttemptContext) -> None:
        assert context.mlflow_uri is not None
        self._run_dir = Path(context.run_dir)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "trainer.mlflow_replica", str(self._run_dir), "--follow"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process if it is still there: it sees its standard input close, as it would if we were killed."""
        assert self._process is not None
        if isinstance(error, Exception):
            self.finish("stopped" if isinstance(error, AbortedError) else "failed")
        self._stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self) -> MlflowRun | None:
        """The MLflow run, once it is known."""
        return read_mlflow_run(self._run_dir)

    def begin(self) -> None:
        """The journal is ready to be read."""
        self._say("begin")

    def finish(self, outcome: Outcome) -> None:
        """The journal is complete: wait until all of it is copied, but not for ever."""
        self._say(f"finish {outcome}")
        assert self._process is not None
        try:
            code = self._process.wait(timeout=FINISH_TIMEOUT_S[outcome])
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            log.warning(
                "MLflow does not have everything yet; later: python -m trainer.mlflow_replica %s", self._run_dir
            )

    @property
    def _stdin(self) -> IO[str]:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin

    def _say(self, word: str) -> None:
        try:
            self._stdin.write(f"{word}\n")
            self._stdin.flush()
        except OSError:
            log.warning("the copy to MLflow has ended early")
