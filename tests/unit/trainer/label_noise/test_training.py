"""Label noise told by training steps: what is computed from the logits, and what is kept of it."""

import io

import numpy as np
import pytest
import torch

from trainer.label_noise.histogram import counts
from trainer.label_noise.training import TrainingNoise, epsilon_sq_of_pairs
from trainer.ranks import Ranks

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
NUM_TRAIN, C = 20, 3
TRACKED = np.array([2, 3, 11, 19])
GENERATOR = torch.Generator().manual_seed(0)


def new_noise():
    return TrainingNoise(C, NUM_TRAIN, TRACKED, ALONE)


SQUARES = torch.rand(NUM_TRAIN, generator=GENERATOR, dtype=torch.float64) / 100
LABELS = torch.arange(NUM_TRAIN) % C
ORDER = torch.randperm(NUM_TRAIN, generator=GENERATOR)


def feed(noise, rows):
    """Two batches, each with an unreadable example and padding."""
    for part_B in rows.split(8):
        rows_B = torch.cat([part_B, torch.tensor([0, -1])])  # row 0 as if unreadable this time
        valid_B = torch.tensor([True] * (len(rows_B) - 2) + [False, False])
        squares_B = torch.where(valid_B, SQUARES[rows_B], 1.0)
        noise.add(squares_B, torch.where(rows_B < 0, 0, LABELS[rows_B]), valid_B, rows_B)


def test_pairs_are_averaged_in_squares():
    logits = [torch.randn(5, C, generator=GENERATOR) for _ in range(4)]
    p = [part.double().softmax(1) for part in logits]
    expected_B = (((p[0] - p[1]) / 2).square().sum(1) + ((p[2] - p[3]) / 2).square().sum(1)) / 2
    torch.testing.assert_close(epsilon_sq_of_pairs(logits), expected_B)
    with pytest.raises(AssertionError, match="pairs"):
        epsilon_sq_of_pairs(logits[:3])


def test_bf16_logits_are_not_subtracted_in_bf16():
    plus_BC = torch.tensor([[4.0, 0.0]], dtype=torch.bfloat16)
    minus_BC = torch.tensor([[3.984375, 0.0]], dtype=torch.bfloat16)
    p_plus, p_minus = (part.double().softmax(1) for part in (plus_BC, minus_BC))
    assert epsilon_sq_of_pairs([plus_BC, minus_BC]).item() == pytest.approx(((p_plus - p_minus) / 2).norm() ** 2)


def test_each_example_is_counted_once_and_found_in_its_slot():
    noise = new_noise()
    seen = ORDER[ORDER != 11][:15]
    feed(noise, seen)
    found = noise.over_ranks()
    assert found.histogram.overall().counts == tuple(counts(SQUARES[seen].sqrt()).tolist())
    for label, part in enumerate(found.histogram.per_class()):
        assert part.counts == tuple(counts(SQUARES[seen][LABELS[seen] == label].sqrt()).tolist())
    assert found.histogram.overall().mean == pytest.approx(SQUARES[seen].sqrt().mean().item())
    expected_N = np.where(np.isin(TRACKED, seen.numpy()), SQUARES.sqrt()[TRACKED].numpy(), np.nan)
    assert 0 < np.isnan(expected_N).sum() < len(TRACKED)
    np.testing.assert_allclose(found.tracked_N, expected_N, rtol=1e-6)


def test_what_is_not_finite_is_not_counted():
    noise = new_noise()
    squares_B = torch.tensor([torch.nan, 0.01, torch.inf], dtype=torch.float64)
    noise.add(squares_B, torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool), torch.tensor([2, 3, 11]))
    found = noise.over_ranks()
    assert found.histogram.overall().num_examples == 1
    assert found.histogram.overall().mean == pytest.approx(0.1)
    np.testing.assert_allclose(found.tracked_N, [np.nan, 0.1, np.nan, np.nan])


def test_an_epoch_forgets_the_one_before():
    noise = new_noise()
    feed(noise, ORDER)
    noise.start_epoch()
    assert noise.over_ranks().histogram.is_empty
    assert np.isnan(noise.over_ranks().tracked_N).all()


def test_without_steps_that_tell_there_is_nothing_to_show_or_save():
    noise = new_noise()
    assert noise.over_ranks() is None
    assert noise.state_dict() == {}
    noise.load_state_dict({})
    assert noise.over_ranks() is None


def test_resuming_goes_on_as_if_never_stopped():
    through, before, after = new_noise(), new_noise(), new_noise()
    feed(through, ORDER[:9])
    feed(before, ORDER[:9])
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    for noise in (through, after):
        feed(noise, ORDER[9:])
    one, other = through.over_ranks(), after.over_ranks()
    assert torch.equal(one.histogram.table, other.histogram.table)
    np.testing.assert_array_equal(one.tracked_N, other.tracked_N)
