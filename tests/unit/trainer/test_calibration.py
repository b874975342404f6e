"""PredictionCounts against scikit-learn and against sums written out."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, confusion_matrix, log_loss

from trainer.calibration import NUM_BINS, PredictionCounts

NUM_CLASSES = 5
GENERATOR = torch.Generator().manual_seed(0)
LOGITS_BC = 2 * torch.randn(400, NUM_CLASSES, generator=GENERATOR)
LABELS_B = torch.randint(NUM_CLASSES, (400,), generator=GENERATOR)


@pytest.fixture
def evaluation():
    counts = PredictionCounts(NUM_CLASSES)
    for rows in torch.arange(400).split(64):
        counts.add(LOGITS_BC[rows], LABELS_B[rows])
    return counts.evaluation("test", "clean")


def test_figures_are_those_of_sklearn(evaluation):
    p_BC, labels_B = LOGITS_BC.double().softmax(1).numpy(), LABELS_B.numpy()
    predicted_B = p_BC.argmax(1)
    assert evaluation.num_examples == 400
    assert evaluation.accuracy == pytest.approx(accuracy_score(labels_B, predicted_B))
    assert evaluation.nll == pytest.approx(log_loss(labels_B, p_BC))
    assert evaluation.brier == pytest.approx(brier_score_loss(labels_B, p_BC, scale_by_half=False))
    assert (np.array(evaluation.confusion) == confusion_matrix(labels_B, predicted_B)).all()


def test_ece_is_its_definition(evaluation):
    p_BC, labels_B = LOGITS_BC.double().softmax(1).numpy(), LABELS_B.numpy()
    confidence_B, right_B = p_BC.max(1), p_BC.argmax(1) == labels_B
    ece = 0.0
    for i, found in enumerate(evaluation.reliability):
        inside_B = (confidence_B >= i / NUM_BINS) & (confidence_B < (i + 1) / NUM_BINS)
        assert found.num_examples == inside_B.sum()
        if not inside_B.any():
            assert found.confidence is None
            assert found.accuracy is None
            continue
        assert found.confidence == pytest.approx(confidence_B[inside_B].mean())
        assert found.accuracy == pytest.approx(right_B[inside_B].mean())
        ece += inside_B.mean() * abs(confidence_B[inside_B].mean() - right_B[inside_B].mean())
    assert evaluation.ece == pytest.approx(ece)


def test_ranks_merge_by_addition(evaluation):
    ranks = [PredictionCounts(NUM_CLASSES) for _ in range(3)]
    for rank, counts in enumerate(ranks):
        counts.add(LOGITS_BC[rank::3], LABELS_B[rank::3])
    ranks[0].table += ranks[1].table + ranks[2].table
    merged = ranks[0].evaluation("test", "clean")
    assert merged.confusion == evaluation.confusion
    assert merged.nll == pytest.approx(evaluation.nll)
    assert merged.ece == pytest.approx(evaluation.ece)


def test_certain_predictions_are_in_the_last_bin():
    counts = PredictionCounts(2)
    counts.add(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 1]))
    evaluation = counts.evaluation("val", "given")
    assert evaluation.reliability[-1].num_examples == 2
    assert (evaluation.accuracy, evaluation.nll, evaluation.brier, evaluation.ece) == (1, 0, 0, 0)


def test_an_empty_batch_counts_nothing_and_an_empty_split_is_refused():
    counts = PredictionCounts(2)
    counts.add(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="split 'val'"):
        counts.evaluation("val", "given")
