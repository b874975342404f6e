"""Results: what a job's attempts left in their folders. The newest attempt with a journal is complete by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from service.cluster.attempts import AttemptFolders
from service.results.headlines import Headlines
from service.schemas import ExampleEpoch, ExampleSort, ExampleView, MetricPoint, MetricSeries, MetricsView
from trainer.run_schema import (
    CHECKPOINTS_DIR,
    EVALUATION_DIR,
    EXAMPLE_COLUMNS,
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

LABEL_KINDS = ("given", "clean", "predicted")

_Record = TypeVar("_Record", bound=BaseModel)


@dataclass(frozen=True)
class ExampleQuery:
    """Which examples of an epoch, in which order."""

    sort: ExampleSort = "suspicion"
    ascending: bool = False
    given_label: int | None = None


@dataclass(frozen=True)
class ExampleSlice:
    """Some of the examples that match, and how many match in all."""

    total: int
    items: list[ExampleView]


@dataclass(frozen=True)
class FoundModel:
    """Where an attempt's model is."""

    attempt: int
    path: Path
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
        except ValidationError:
            return None

    def examples(self, job_id: str, epoch: int, query: ExampleQuery, offset: int, limit: int) -> ExampleSlice | None:
        """A slice of an epoch's tracked examples in order; None if the epoch is not there yet."""
        run_dir = self._run_dir(job_id)
        path = None if run_dir is None else run_dir / epoch_file(EXAMPLES_DIR, epoch, "parquet")
        record = self.label_noise(job_id, epoch)
        if path is None or record is None or not path.exists():
            return None
        keys = pq.read_table(path, columns=[query.sort, "given_label"])
        rows = _ordered_rows(keys, query)
        table = pq.read_table(path, columns=list(EXAMPLE_COLUMNS)).take(pa.array(rows[offset : offset + limit]))
        return ExampleSlice(len(rows), [_example(row, record.classes) for row in table.to_pylist()])

    def table(self, job_id: str, epoch: int, query: ExampleQuery) -> pa.Table | None:
        """All of an epoch's tracked examples that match, in order, with the names of their classes; None if the epoch
        is not there yet. NaN becomes null."""
        run_dir = self._run_dir(job_id)
        path = None if run_dir is None else run_dir / epoch_file(EXAMPLES_DIR, epoch, "parquet")
        record = self.label_noise(job_id, epoch)
        if path is None or record is None or not path.exists():
            return None
        table = pq.read_table(path, columns=list(EXAMPLE_COLUMNS))
        table = table.take(pa.array(_ordered_rows(table, query)))
        names = pa.array(record.classes)
        for kind in LABEL_KINDS:
            table = table.append_column(f"{kind}_class", names.take(table[f"{kind}_label"].combine_chunks()))
        for number, field in enumerate(table.schema):
            if pa.types.is_floating(field.type):
                column = table[field.name]
                table = table.set_column(number, field.name, pc.if_else(pc.is_nan(column), None, column))
        return table

    def history(self, job_id: str, example_id: str) -> list[ExampleEpoch]:
        """A tracked example after each epoch, the first one first; empty if it is not tracked."""
        run_dir = self._run_dir(job_id)
        found = []
        for epoch in self.epochs(job_id, EXAMPLES_DIR, "parquet"):
            record = self.label_noise(job_id, epoch)
            if run_dir is None or record is None:
                continue
            path = run_dir / epoch_file(EXAMPLES_DIR, epoch, "parquet")
            here = pq.read_table(path, columns=list(EXAMPLE_COLUMNS), filters=[("example_id", "=", example_id)])
            rows = [_example(row, record.classes) for row in here.to_pylist()]
            found += [ExampleEpoch(epoch=epoch, **row.model_dump()) for row in rows]
        return found

    def model(self, job_id: str) -> FoundModel | None:
        """The model of the newest attempt that has trained; None if it is not there yet."""
        run_dir = self._run_dir(job_id)
        if run_dir is None or not (run_dir / MODEL_FILE).exists():
            return None
        entries = [entry for entry in self._journal(job_id) if entry.file == MODEL_FILE]
        newest = max(self.epochs(job_id, EVALUATION_DIR, "json"), default=None)
        report = None if newest is None else self.evaluation(job_id, newest)
        try:
            result = AttemptResult.model_validate_json((run_dir / RESULT_FILE).read_bytes())
        except (FileNotFoundError, ValidationError):
            result = None
        checkpoints = sorted((run_dir / CHECKPOINTS_DIR).glob("step_*.pt"))
        return FoundModel(
            attempt=int(run_dir.name.rpartition("-")[2]),
            path=run_dir / MODEL_FILE,
            epoch=entries[-1].epoch if entries else 0,
            classes=() if report is None else report.classes,
            sha256=None if result is None else result.files.get(MODEL_FILE),
            checkpoint=checkpoints[-1] if checkpoints else None,
        )

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


def _ordered_rows(keys: pa.Table, query: ExampleQuery) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows that match, sorted; equal values stay in the table's order, NaN and null come last either way."""
    rows = np.arange(keys.num_rows)
    if query.given_label is not None:
        rows = rows[keys["given_label"].to_numpy() == query.given_label]
    values = keys[query.sort].to_numpy()[rows].astype(np.float64)
    signed = values if query.ascending else -values
    return rows[np.argsort(signed, kind="stable")]


def _example(row: dict[str, object], classes: tuple[str, ...]) -> ExampleView:
    """A row with the names of its classes; floats that JSON does not have become null where the schema allows it."""
    finite = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in row.items()}
    names = {f"{kind}_class": _class_name(row[f"{kind}_label"], classes) for kind in LABEL_KINDS}
    return ExampleView.model_validate(finite | names)


def _class_name(label: object, classes: tuple[str, ...]) -> str | None:
    return classes[label] if isinstance(label, int) else None
