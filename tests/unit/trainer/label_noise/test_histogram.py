"""Histograms of ‖ε‖₂: edges, counts, quantiles against numpy, and the record of an epoch."""

import math

import numpy as np
import pytest
import torch

from trainer.label_noise.histogram import BIN_RATIO, EDGES, NUM_BINS, ClassHistogram, counts, noise_record, to_histogram
from trainer.run_schema import QUANTILES, LabelNoiseRecord


def test_edges_cover_the_range_with_twelve_bins_a_decade():
    assert EDGES[0] == pytest.approx(1e-8)
    assert EDGES[-1] == pytest.approx(math.sqrt(2))
    assert len(EDGES) == NUM_BINS + 1
    assert np.allclose(np.diff(np.log10(EDGES)), math.log10(BIN_RATIO))
    assert 1 / math.log10(BIN_RATIO) == pytest.approx(12, abs=0.1)
    assert round(BIN_RATIO, 2) == 1.21  # as its docstring and that of the published quantiles say


def test_counts_are_numpys():
    values = torch.from_numpy(np.random.default_rng(0).lognormal(-6, 2, 10_000)).clamp(EDGES[0], EDGES[-1])
    expected, _ = np.histogram(values.numpy(), bins=np.array(EDGES))
    assert (counts(values).numpy() == expected).all()


def test_an_edge_belongs_to_the_bin_above_and_outliers_to_the_ends():
    found = counts(torch.tensor([0.0, 1e-12, EDGES[0], EDGES[5], EDGES[-1], 2.0], dtype=torch.float64))
    assert found[0] == 3
    assert found[5] == 1
    assert found[-1] == 2
    assert found.dtype == torch.int64


@pytest.mark.parametrize("num_examples", [1, 7, 1000])
@pytest.mark.parametrize("spread", [0.05, 1.0, 3.0])
def test_quantiles_are_within_the_stated_bound_of_numpys(num_examples, spread):
    values = np.random.default_rng(1).lognormal(-6, spread, num_examples).clip(EDGES[0], EDGES[-1])
    histogram = to_histogram(counts(torch.from_numpy(values)), values.sum())
    assert histogram.num_examples == num_examples
    assert histogram.mean == pytest.approx(values.mean())
    for q in QUANTILES:
        expected = np.quantile(values, q / 100, method="inverted_cdf")
        assert 1 / BIN_RATIO <= histogram.quantiles[f"p{q}"] / expected <= BIN_RATIO


def test_an_empty_histogram_has_no_quantiles():
    histogram = to_histogram(counts(torch.empty(0)), 0.0)
    assert histogram.num_examples == 0
    assert histogram.quantiles == {}
    assert histogram.mean == 0.0


def counted(values_B, labels_B, num_classes=3):
    histogram = ClassHistogram(num_classes)
    histogram.add(values_B, labels_B, torch.ones_like(labels_B, dtype=torch.bool))
    return histogram


def epoch_record(values_B, labels_B, num_ranks):
    histograms = {"exact": ClassHistogram(3), "linearised": ClassHistogram(3), "training": ClassHistogram(3)}
    for rank in range(num_ranks):
        mine = slice(rank, None, num_ranks)
        histograms["exact"].table += counted(values_B[mine], labels_B[mine]).table
        histograms["linearised"].table += counted(2 * values_B[mine], labels_B[mine]).table
    return noise_record(histograms, epoch=2, step=10, classes=("a", "b", "c"), num_examples=len(values_B))


def test_record_counts_every_example_once_overall_and_by_class():
    values_B = torch.from_numpy(np.random.default_rng(2).lognormal(-5, 1, 500))
    labels_B = torch.arange(500) % 2  # class c has none
    record = epoch_record(values_B, labels_B, num_ranks=1)
    assert sum(record.overall["exact"].counts) == record.num_examples == 500
    assert [h.num_examples for h in record.per_class["exact"]] == [250, 250, 0]
    assert record.overall["exact"].counts == tuple(counts(values_B).tolist())
    assert record.per_class["exact"][1].counts == tuple(counts(values_B[1::2]).tolist())
    assert set(record.overall) == set(record.per_class) == {"exact", "linearised"}  # training counted nothing
    assert record.overall["linearised"].mean == pytest.approx(2 * values_B.mean().item())
    assert LabelNoiseRecord.model_validate_json(record.model_dump_json()) == record


def test_ranks_add_up_to_the_record_of_one():
    values_B = torch.from_numpy(np.random.default_rng(3).lognormal(-5, 1, 101))
    labels_B = torch.arange(101) % 3
    one, three = (epoch_record(values_B, labels_B, num_ranks) for num_ranks in (1, 3))
    assert three.overall["exact"].counts == one.overall["exact"].counts
    assert three.overall["exact"].mean == pytest.approx(one.overall["exact"].mean)
    assert [h.counts for h in three.per_class["linearised"]] == [h.counts for h in one.per_class["linearised"]]


def test_a_method_without_a_posterior_has_an_empty_record():
    record = noise_record({"exact": ClassHistogram(2)}, epoch=1, step=1, classes=("a", "b"), num_examples=5)
    assert record.overall == {}
    assert record.per_class == {}


def test_what_does_not_count_leaves_no_trace():
    values_B = torch.tensor([1e-3, float("nan"), float("inf"), 1e-2], dtype=torch.float64)
    labels_B = torch.tensor([0, 0, 1, 1])
    histogram = ClassHistogram(2)
    histogram.add(values_B, labels_B, torch.tensor([True, False, False, True]))
    assert torch.equal(histogram.table, counted(values_B[[0, 3]], labels_B[[0, 3]], 2).table)
