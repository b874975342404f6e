"""Results: what a job's attempts left in their folders. The newest attempt with a journal is complete by itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from service.cluster.attempts import AttemptFolders
from service.result_schemas import ExampleEpoch, MetricPoint, MetricSeries, MetricsView
from service.results.example_tables import (
    ExampleQuery,
    ExampleSlice,
    UnreadableError,
    read_all,
    read_one,
    read_slice,
)
from service.results.headlines import Headlines
from trainer.run_schema import (
    CHECKPOINTS_DIR,
    EVALUATION_DIR,
    EXAMPLES_DIR,
    JOURNAL_FILE,
    LABEL_NOISE_DIR,
    MODEL_FILE,
    RESULT_FILE,
    AttemptResult,
    EvaluationReport,
    JournalEntry,
    LabelNoiseRecord,
    epoch_file,
)

logger = logging.getLogger(__name__)

_Found = TypeVar("_Found")
_Record = TypeVar("_Record", bound=BaseModel)


@dataclass(frozen=True)
class FoundModel:
    """Where an attempt's model is."""

    attempt: int
    path: Path
    size_bytes: int
    epoch: int
    classes: tuple[str, ...]
    sha256: str | None
    checkpoint: Path | None


class Results:
    """Reads what attempts leave behind."""

    def __init__(self, folders: AttemptFolders) -> None:
        """`folders` knows where the attempts are."""
        self._folders = folders

    def metrics(self, job_id: str) -> MetricsView:
        """All metrics, by name and step; of a step that was trained twice, the later value."""
        series: dict[str, dict[int, MetricPoint]] = {}
        for entry in self._journal(job_id):
            for name, value in entry.metrics.items():
                if math.isfinite(value):
                    point = MetricPoint(step=entry.step, epoch=entry.epoch, time_ms=entry.time_ms, value=value)
                    series.setdefault(name, {})[entry.step] = point
        return MetricsView(
            series=[
                MetricSeries(name=name, points=[points[step] for step in sorted(points)])
                for name, points in sorted(series.items())
            ]
        )

    def epochs(self, job_id: str, folder: str, suffix: str) -> list[int]:
        """Epochs whose file is there, ascending."""
        run_dir = self._run_dir(job_id)
        if run_dir is None:
            return []
        names = (path.stem.removeprefix("epoch_") for path in (run_dir / folder).glob(f"epoch_*.{suffix}"))
        return sorted(int(name) for name in names if name.isdecimal())

    def label_noise(self, job_id: str, epoch: int) -> LabelNoiseRecord | None:
        """The label-noise histograms of an epoch; None if they are not there yet."""
        return self._read(job_id, LABEL_NOISE_DIR, epoch, LabelNoiseRecord)

    def evaluation(self, job_id: str, epoch: int) -> EvaluationReport | None:
        """The evaluation of an epoch; None if it is not there yet."""
        return self._read(job_id, EVALUATION_DIR, epoch, EvaluationReport)

    def headlines(self, job_id: str) -> Headlines | None:
        """The headline figures of the newest evaluation; None if there is none yet, or none that can be read."""
        newest = max(self.epochs(job_id, EVALUATION_DIR, "json"), default=None)
        try:
            return None if newest is None else self._read(job_id, EVALUATION_DIR, newest, Headlines)
        except UnreadableError:
            return None

    def examples(self, job_id: str, epoch: int, query: ExampleQuery, offset: int, limit: int) -> ExampleSlice | None:
        """A slice of an epoch's tracked examples in order; None if the epoch is not there yet."""
        return self._of_table(job_id, epoch, lambda path, classes: read_slice(path, classes, query, offset, limit))

    def table(self, job_id: str, epoch: int, query: ExampleQuery) -> pa.Table | None:
        """All of an epoch's tracked examples that match, in order; None if the epoch is not there yet."""
        return self._of_table(job_id, epoch, lambda path, classes: read_all(path, classes, query))

    def history(self, job_id: str, example_id: str) -> list[ExampleEpoch]:
        """A tracked example after each epoch that can be read, the first one first; empty if it is not tracked."""
        run_dir, epochs = self._run_dir(job_id), self.epochs(job_id, EXAMPLES_DIR, "parquet")
        record = self.label_noise(job_id, epochs[-1]) if epochs else None
        if run_dir is None or record is None:
            return []
        found: list[ExampleEpoch] = []
        number: int | None = None
        for epoch in epochs:
            try:
                path = run_dir / epoch_file(EXAMPLES_DIR, epoch, "parquet")
                row = read_one(path, record.classes, example_id, number)
            except FileNotFoundError:
                continue
            except UnreadableError as error:
                logger.warning("job %s: %s", job_id, error)
                continue
            if row is None:
                return found
            number = row.number
            found.append(ExampleEpoch(epoch=epoch, **row.view.model_dump()))
        return found

    def weights(self, job_id: str) -> Path | None:
        """The file of the model of the newest attempt that has trained; None if it is not there yet."""
        found = self._weights(job_id)
        return None if found is None else found[0]

    def model(self, job_id: str) -> FoundModel | None:
        """The same model, and what is known of it."""
        found = self._weights(job_id)
        if found is None:
            return None
        path, epoch = found
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError:  # the run was taken up again just now
            return None
        try:
            result = AttemptResult.model_validate_json(path.with_name(RESULT_FILE).read_bytes())
        except (OSError, ValidationError):
            result = None
        checkpoints = sorted((path.parent / CHECKPOINTS_DIR).glob("step_*.pt"))
        return FoundModel(
            attempt=int(path.parent.name.rpartition("-")[2]),
            path=path,
            size_bytes=size_bytes,
            epoch=epoch,
            classes=self._classes(job_id),
            sha256=None if result is None else result.files.get(MODEL_FILE),
            checkpoint=checkpoints[-1] if checkpoints else None,
        )

    def _weights(self, job_id: str) -> tuple[Path, int] | None:
        """The file and its epoch, once the journal names it: one that an attempt left which then died is none."""
        run_dir = self._run_dir(job_id)
        epochs = [entry.epoch for entry in self._journal(job_id) if entry.file == MODEL_FILE]
        if run_dir is None or not epochs or not (run_dir / MODEL_FILE).exists():
            return None
        return run_dir / MODEL_FILE, epochs[-1]

    def _classes(self, job_id: str) -> tuple[str, ...]:
        """Names by label, out of the newest evaluation; empty if there is none that can be read."""
        newest = max(self.epochs(job_id, EVALUATION_DIR, "json"), default=None)
        try:
            report = None if newest is None else self.evaluation(job_id, newest)
        except UnreadableError:
            report = None
        return () if report is None else report.classes

    def _of_table(self, job_id: str, epoch: int, read: Callable[[Path, tuple[str, ...]], _Found]) -> _Found | None:
        run_dir, record = self._run_dir(job_id), self.label_noise(job_id, epoch)
        if run_dir is None or record is None:
            return None
        try:
            return read(run_dir / epoch_file(EXAMPLES_DIR, epoch, "parquet"), record.classes)
        except FileNotFoundError:
            return None

    def _run_dir(self, job_id: str) -> Path | None:
        folders = self._folders.newest_first(job_id)
        return next((folder for folder in folders if (folder / JOURNAL_FILE).exists()), None)

    def _journal(self, job_id: str) -> Iterator[JournalEntry]:
        run_dir = self._run_dir(job_id)
        if run_dir is None:
            return
        with (run_dir / JOURNAL_FILE).open("rb") as lines:
            for line in lines:
                try:
                    yield JournalEntry.model_validate_json(line)
                except ValidationError:
                    continue  # the line being written now, or one that a crash has cut

    def _read(self, job_id: str, folder: str, epoch: int, kind: type[_Record]) -> _Record | None:
        run_dir = self._run_dir(job_id)
        if run_dir is None:
            return None
        try:
            return kind.model_validate_json((run_dir / epoch_file(folder, epoch, "json")).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise UnreadableError(
                f"{epoch_file(folder, epoch, 'json')} cannot be read: {error.error_count()} errors"
            ) from None
