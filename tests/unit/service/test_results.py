"""Reading what attempts leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from service.cluster.attempts import AttemptFolders
from service.result_schemas import ExampleSort, ExampleView
from service.results.example_tables import ExampleQuery
from service.results.reader import Results
from trainer.calibration import PredictionCounts
from trainer.run_schema import EXAMPLE_COLUMNS, EvaluationReport, LabelNoiseRecord

NUM = 500


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run_dir = tmp_path / "jobs" / "job" / "attempt-1"
    for name in ("label_noise", "examples"):
        (run_dir / name).mkdir(parents=True)
    (run_dir / "journal.jsonl").write_text("")
    return run_dir


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(AttemptFolders(tmp_path, "http://hush", None))


def write_epoch(run_dir: Path, epoch: int = 1) -> pa.Table:
    rng = np.random.default_rng(epoch)
    labels = rng.integers(0, 3, NUM)
    numbers = {name: rng.normal(size=NUM).round(1) for name in EXAMPLE_COLUMNS}
    numbers["suspicion"][7] = np.nan
    columns = numbers | {
        "example_id": [f"e{i}" for i in range(NUM)],
        "shard": pa.array(["s"] * NUM).dictionary_encode(),
        "given_label": pa.array(labels, pa.int32()),
        "clean_label": pa.array(labels, pa.int32(), mask=np.arange(NUM) % 2 == 0),
        "predicted_label": pa.array(labels, pa.int32(), mask=np.arange(NUM) == 7),
        "num_records": [epoch] * NUM,
        "forgetting_events": [0] * NUM,
        "epsilon_exact": pa.nulls(NUM, pa.float32()),
    }
    table = pa.table({name: columns[name] for name in EXAMPLE_COLUMNS})
    pq.write_table(table, run_dir / "examples" / f"epoch_{epoch:04d}.parquet", row_group_size=100)
    record = LabelNoiseRecord(epoch=epoch, step=1, classes=("a", "b", "c"), num_examples=NUM, overall={}, per_class={})
    (run_dir / "label_noise" / f"epoch_{epoch:04d}.json").write_text(record.model_dump_json())
    return table


def walk(results: Results, query: ExampleQuery, limit: int) -> list[ExampleView]:
    found: list[ExampleView] = []
    while page := results.examples("job", 1, query, len(found), limit):
        if not page.items:
            assert len(found) == page.total
            return found
        found += page.items
    raise AssertionError("the epoch is not there")


def test_examples_are_the_tables_rows(results: Results, folder: Path) -> None:
    table = write_epoch(folder)
    by_id = {row["example_id"]: row for row in table.to_pylist()}
    found = walk(results, ExampleQuery(), 64)
    assert len({example.example_id for example in found}) == NUM
    for example in found[:50]:
        row = by_id[example.example_id]
        assert example.loss == row["loss"]
        assert example.epsilon_exact is None
        assert example.given_class == "abc"[row["given_label"]]
        assert example.clean_class == (None if row["clean_label"] is None else "abc"[row["clean_label"]])


@pytest.mark.parametrize("sort", get_args(ExampleSort))
@pytest.mark.parametrize("ascending", [False, True])
def test_sorted_whatever_the_pages(results: Results, folder: Path, sort: ExampleSort, ascending: bool) -> None:
    write_epoch(folder)
    query = ExampleQuery(sort, ascending)
    found = walk(results, query, 77)
    values = [getattr(example, sort) for example in found]
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=not ascending)
    assert None not in values[: len(known)]  # what is unknown comes last
    assert [e.example_id for e in found] == [e.example_id for e in walk(results, query, NUM)]


def test_filter_by_given_label(results: Results, folder: Path) -> None:
    write_epoch(folder)
    found = walk(results, ExampleQuery(given_label=2), 50)
    assert {example.given_label for example in found} == {2}
    assert walk(results, ExampleQuery(given_label=9), 50) == []


def test_an_example_the_epoch_could_not_read(results: Results, folder: Path) -> None:
    write_epoch(folder)
    [seventh] = [example for example in walk(results, ExampleQuery(), NUM) if example.example_id == "e7"]
    assert (seventh.predicted_label, seventh.predicted_class, seventh.suspicion) == (None, None, None)


def test_epochs_are_those_whose_files_are_there(results: Results, folder: Path) -> None:
    assert results.epochs("job", "examples", "parquet") == []
    for epoch in (1, 3):
        write_epoch(folder, epoch)
    (folder / "examples" / "epoch_0004.parquet.part").write_text("")
    assert results.epochs("job", "examples", "parquet") == [1, 3]
    assert results.label_noise("job", 2) is None
    assert results.examples("job", 2, ExampleQuery(), 0, 10) is None


def journal(run_dir: Path, *entries: tuple[int, float]) -> str:
    lines = [{"time_ms": 1, "step": step, "epoch": 1, "metrics": {"train/loss": value}} for step, value in entries]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_a_half_written_line_is_left_out(results: Results, folder: Path) -> None:
    (folder / "journal.jsonl").write_text(journal(folder, (1, 0.5), (2, 0.25))[:-20])
    [series] = results.metrics("job").series
    assert [(point.step, point.value) for point in series.points] == [(1, 0.5)]


def test_a_step_trained_twice_is_told_once(results: Results, folder: Path) -> None:
    (folder / "journal.jsonl").write_text(journal(folder, (1, 0.5), (2, 9.0), (2, 0.25), (3, float("nan"))))
    [series] = results.metrics("job").series
    assert [(point.step, point.value) for point in series.points] == [(1, 0.5), (2, 0.25)]


def test_the_newest_attempt_with_a_journal_is_read(results: Results, folder: Path) -> None:
    for number, value in ((2, 0.2), (10, None)):
        other = folder.with_name(f"attempt-{number}")
        other.mkdir()
        if value is not None:
            (other / "journal.jsonl").write_text(journal(other, (1, value)))
    [series] = results.metrics("job").series
    assert series.points[0].value == 0.2


def test_a_job_without_attempts(results: Results) -> None:
    assert results.metrics("job").series == []
    assert results.evaluation("job", 1) is None


def report(epoch: int, accuracy: float) -> EvaluationReport:
    counts = PredictionCounts(2)
    counts.add(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    val, averaged = counts.evaluation("val", "clean"), counts.evaluation("val", "clean", 8)
    splits = {"val": val.model_copy(update={"accuracy": accuracy})}
    return EvaluationReport(epoch=epoch, step=epoch, classes=("a", "b"), splits=splits, averaged={"val": averaged})


def test_headlines_are_those_of_the_newest_evaluation(folder: Path, results: Results) -> None:
    assert results.headlines("job") is None
    (folder / "evaluation").mkdir()
    for epoch in (1, 10, 2):
        path = folder / "evaluation" / f"epoch_{epoch:04d}.json"
        path.write_text(report(epoch, epoch / 10).model_dump_json())
    found = results.headlines("job")
    assert found is not None
    assert (found.epoch, found.splits["val"].labels, found.splits["val"].accuracy) == (10, "clean", 1.0)
    whole = report(10, 1.0)
    for ours, theirs in ((found.splits, whole.splits), (found.averaged, whole.averaged)):
        assert {s: h.model_dump() for s, h in ours.items()} == {
            s: evaluation.model_dump(include={"labels", "accuracy", "nll", "brier", "ece"})
            for s, evaluation in theirs.items()
        }
    (folder / "evaluation" / "epoch_0011.json").write_text("{")
    assert results.headlines("job") is None
