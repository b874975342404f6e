"""What ranks measure merges: any split of the examples over ranks adds up to the same counts."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.calibration import PredictionCounts
from trainer.label_noise.histogram import BIN_RATIO, EDGES, ClassHistogram, counts, quantile

NORMS = st.lists(st.floats(min_value=0, max_value=1.5), max_size=60)
INSIDE = st.lists(st.floats(min_value=EDGES[0], max_value=EDGES[-1]), min_size=1, max_size=60)


def parts_of(values, cut):
    return values[: cut % (len(values) + 1)], values[cut % (len(values) + 1) :]


@given(NORMS, st.integers(min_value=0))
def test_counts_of_parts_add_up(values, cut):
    left, right = (torch.tensor(part, dtype=torch.float64) for part in parts_of(values, cut))
    whole = counts(torch.tensor(values, dtype=torch.float64))
    assert torch.equal(counts(left) + counts(right), whole)
    assert whole.sum() == len(values)


@given(INSIDE, st.floats(min_value=0, max_value=1))
def test_a_quantile_is_within_a_bin_of_the_true_one(values, q):
    found = quantile(counts(torch.tensor(values, dtype=torch.float64)).numpy(), q)
    ordered = np.sort(values)
    rank = max(int(np.ceil(q * len(values) - 1e-9)), 1)
    assert 1 / (BIN_RATIO * 1.000001) <= found / ordered[rank - 1] <= BIN_RATIO * 1.000001


@given(INSIDE)
def test_quantiles_rise(values):
    histogram = counts(torch.tensor(values, dtype=torch.float64)).numpy()
    quantiles = [quantile(histogram, q) for q in (0.0, 0.05, 0.3, 0.5, 0.9, 1.0)]
    assert quantiles == sorted(quantiles)


@settings(deadline=None)  # the first use of torch.testing imports sympy
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1.4)), min_size=1, max_size=40), st.integers(min_value=0))
def test_class_histograms_of_parts_add_up(examples, cut):
    tables = []
    for part in (examples, *parts_of(examples, cut)):
        histogram = ClassHistogram(4)
        labels_B = torch.tensor([label for label, _ in part], dtype=torch.int64)
        norms_B = torch.tensor([norm for _, norm in part], dtype=torch.float64)
        histogram.add(norms_B, labels_B, torch.ones_like(labels_B, dtype=torch.bool))
        tables.append(histogram.table)
    torch.testing.assert_close(tables[1] + tables[2], tables[0])


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 50), st.integers(2, 6), st.integers(min_value=0))
def test_prediction_counts_of_parts_add_up(seed, num_examples, num_classes, cut):
    generator = torch.Generator().manual_seed(seed)
    logits_BC = 5 * torch.randn(num_examples, num_classes, generator=generator)
    labels_B = torch.randint(num_classes, (num_examples,), generator=generator)
    tables = []
    for rows in (range(num_examples), *parts_of(range(num_examples), cut)):
        part = PredictionCounts(num_classes)
        part.add(logits_BC[list(rows)], labels_B[list(rows)])
        tables.append(part.table)
    torch.testing.assert_close(tables[1] + tables[2], tables[0])
    whole = PredictionCounts(num_classes)
    whole.table += tables[0]
    evaluation = whole.evaluation("val", "given")
    assert 0 <= evaluation.ece <= 1
    assert sum(found.num_examples for found in evaluation.reliability) == num_examples
    assert sum(map(sum, evaluation.confusion)) == num_examples
