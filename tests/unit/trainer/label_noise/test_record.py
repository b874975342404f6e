"""The record of tracked examples against figures worked out from its whole history."""

import io
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from trainer.label_noise import record as record_module
from trainer.label_noise.estimators import NoiseEstimate
from trainer.label_noise.record import ROW_COLUMNS, ExampleRecord, example_rows
from trainer.run_schema import EXAMPLE_COLUMNS

N, C, EPOCHS = 12, 4, 5
GIVEN = np.arange(N) % C
CLEAN = np.where(np.arange(N) % 3 == 0, -1, GIVEN)


def new_record():
    return ExampleRecord([f"ex{i}" for i in range(N)], [f"shard{i // 5}" for i in range(N)], GIVEN, CLEAN)


def estimates(with_posterior=True):
    """One NoiseEstimate an epoch, of all examples."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        logits_BC = 2 * torch.randn(N, C, generator=generator)
        exact_BC = 0.01 * torch.randn(N, C, generator=generator, dtype=torch.float64)
        squares_B = torch.rand(N, generator=generator, dtype=torch.float64)
        yield NoiseEstimate(logits_BC, exact_BC, squares_B) if with_posterior else NoiseEstimate(logits_BC, None, None)


def rows_of(estimate):
    return example_rows(torch.arange(N), torch.from_numpy(GIVEN), estimate)


TRAINED = np.linspace(0.1, 0.9, N, dtype=np.float32)


def recorded(with_posterior=True):
    record = new_record()
    for estimate in estimates(with_posterior):
        record.start_epoch()
        record.update(rows_of(estimate))
    if with_posterior:
        record.update_trained(TRAINED)
    return record


def test_table_has_the_columns_of_the_schema_in_order():
    table = recorded().to_table()
    assert table.column_names == list(EXAMPLE_COLUMNS)
    assert table.num_rows == N
    assert table.schema.field("clean_label").type == pa.int32()
    assert table.schema.field("loss").type == pa.float32()
    assert table["clean_label"].to_pylist() == [None if c < 0 else c for c in CLEAN.tolist()]
    assert table["shard"].to_pylist() == [f"shard{i // 5}" for i in range(N)]
    for name in set(EXAMPLE_COLUMNS) - {"clean_label"}:
        assert table[name].null_count == 0, name


def test_figures_of_the_epoch_are_those_of_the_last_estimate():
    table = recorded().to_table().to_pydict()
    *_, last = estimates()
    given_B = torch.from_numpy(GIVEN)
    logits_BC = last.logits_at_mean_BC.double()
    others_BC = logits_BC.masked_fill(F.one_hot(given_B, C).bool(), -torch.inf)
    expected = {
        "predicted_label": logits_BC.argmax(1).double(),
        "p_given": logits_BC.softmax(1)[range(N), given_B],
        "loss": F.cross_entropy(logits_BC, given_B, reduction="none"),
        "margin": logits_BC[range(N), given_B] - others_BC.max(1).values,
        "entropy": torch.distributions.Categorical(logits=logits_BC).entropy(),
        "epsilon_exact": last.exact_BC.square().sum(1).sqrt(),
        "epsilon_exact_given": last.exact_BC[range(N), given_B],
        "epsilon_linearised": last.linearised_sq_B.sqrt(),
    }
    for name, values_B in expected.items():
        assert table[name] == pytest.approx(values_B.tolist(), rel=1e-5, abs=1e-6), name
    assert table["ambiguity"] == table["epsilon_linearised"]
    assert table["epsilon_training"] == TRAINED.tolist()


def test_running_figures_are_those_of_the_whole_history():
    table = recorded().to_table().to_pydict()
    history_EBR = torch.stack([rows_of(estimate) for estimate in estimates()]).numpy()
    column = {name: history_EBR[:, :, i] for i, name in enumerate(ROW_COLUMNS)}
    learned_EB = column["predicted_label"] == GIVEN
    assert table["num_records"] == [EPOCHS] * N
    assert table["aum"] == pytest.approx(column["margin"].mean(0).tolist(), rel=1e-5)
    assert table["suspicion"] == pytest.approx((-column["margin"].mean(0)).tolist(), rel=1e-5)
    assert table["confidence"] == pytest.approx(column["p_given"].mean(0).tolist(), rel=1e-5)
    assert table["variability"] == pytest.approx(column["p_given"].std(0).tolist(), rel=1e-5)
    assert table["forgetting_events"] == (learned_EB[:-1] & ~learned_EB[1:]).sum(0).tolist()
    assert max(table["forgetting_events"]) >= 1


def test_rows_may_come_in_any_order_from_any_rank_with_padding():
    ordered, shuffled = new_record(), new_record()
    for estimate in estimates():
        rows = rows_of(estimate)
        ordered.start_epoch()
        ordered.update(rows)
        shuffled.start_epoch()
        padding = torch.full((2, rows.shape[1]), torch.nan, dtype=torch.float64)
        padding[:, 0] = -1
        order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
        for part in rows[order].split(5):
            shuffled.update(torch.cat([padding, part]))
        assert shuffled.num_recorded == N
    ordered.update_trained(TRAINED)
    shuffled.update_trained(TRAINED)
    assert shuffled.to_table().equals(ordered.to_table())


def test_an_example_that_was_not_read_has_nulls_and_keeps_its_running_figures():
    record = new_record()
    first, second, *_ = estimates()
    record.update(rows_of(first))
    aum = record.to_table()["aum"].to_pylist()
    record.start_epoch()
    record.update(rows_of(second)[1:])
    row = record.to_table().slice(0, 1).to_pylist()[0]
    assert row["aum"] == aum[0]
    assert row["num_records"] == 1
    assert record.num_recorded == N - 1
    for name in ("predicted_label", "p_given", "loss", "margin", "entropy", "epsilon_exact", "ambiguity"):
        assert row[name] is None, name


def test_an_example_that_was_never_read_is_listed():
    row = new_record().to_table().to_pylist()[0]
    assert row["example_id"] == "ex0"
    assert row["num_records"] == 0
    assert row["aum"] is None
    assert row["suspicion"] is None
    assert row["variability"] is None


def test_without_a_posterior_epsilon_is_null_and_ambiguity_the_entropy():
    table = recorded(with_posterior=False).to_table()
    for name in ("epsilon_exact", "epsilon_exact_given", "epsilon_linearised", "epsilon_training"):
        assert table[name].null_count == N
    assert table["ambiguity"].to_pylist() == table["entropy"].to_pylist()


def test_resuming_goes_on_as_if_never_stopped():
    *before, last = estimates()
    record = new_record()
    for estimate in before:
        record.start_epoch()
        record.update(rows_of(estimate))
    file = io.BytesIO()
    torch.save(record.state_dict(), file)
    file.seek(0)
    resumed = new_record()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.update(rows_of(last))
    resumed.update_trained(TRAINED)
    assert resumed.to_table().equals(recorded().to_table())


def test_state_of_other_examples_is_refused():
    other = ExampleRecord(["a"], ["s"], np.zeros(1, np.int64), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=f"{N} examples"):
        new_record().load_state_dict(other.state_dict())


def test_where_no_step_came_by_epsilon_training_is_null_and_forgotten_with_the_epoch():
    record = recorded()
    record.update_trained(np.where(np.arange(N) == 3, np.nan, TRAINED))
    found = record.to_table(("example_id", "epsilon_training"))
    assert found["epsilon_training"].is_null().to_pylist() == [i == 3 for i in range(N)]
    record.start_epoch()
    assert record.to_table()["epsilon_training"].null_count == N


def test_parquet_in_groups_of_rows_is_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "ROW_GROUP", 5)
    record = recorded()
    record.write_parquet(tmp_path / "epoch.parquet")
    assert pq.ParquetFile(tmp_path / "epoch.parquet").num_row_groups == 3
    assert pq.read_table(tmp_path / "epoch.parquet").equals(record.to_table())


def test_memory_for_a_million_examples_is_as_stated(tmp_path):
    """What numpy, Python and Arrow hold of a record with its names, and what filling and writing it takes on top."""
    num = 1_000_000
    example_ids = np.array([f"images/{i % 10}/{i:012d}.jpg" for i in range(num)], dtype=np.object_)
    assert len(example_ids[0]) == 25
    shards = np.array([f"train-{i:05d}.tar" for i in range(100)], dtype=np.object_)[np.arange(num) // 10_000]
    labels = np.zeros(num, np.int64)
    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        record = ExampleRecord(example_ids, shards, labels, labels)
        held = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow_before
        tracemalloc.reset_peak()
        record.start_epoch()
        rows = torch.ones(2048, len(ROW_COLUMNS), dtype=torch.float64)
        for start in range(0, num - 2048, 100_000):
            rows[:, 0] = torch.arange(start, start + 2048)
            record.update(rows)
        record.write_parquet(tmp_path / "epoch.parquet")
        peak = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - arrow_before
    finally:
        tracemalloc.stop()
    assert held == pytest.approx(114e6, rel=0.02)
    assert peak - held < 40e6


def test_a_sure_prediction_has_finite_figures():
    logits_BC = torch.tensor([[2000.0, 0.0], [0.0, 2000.0]])
    rows = example_rows(torch.arange(2), torch.tensor([0, 0]), NoiseEstimate(logits_BC, None, None))
    column = dict(zip(ROW_COLUMNS, rows.T, strict=True))
    assert column["loss"].tolist() == [0.0, 2000.0]
    assert column["entropy"].tolist() == [0.0, 0.0]
    assert column["margin"].tolist() == [2000.0, -2000.0]
