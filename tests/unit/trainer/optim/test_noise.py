"""Seeded noise: normal, repeatable, and independent between keys."""

import torch

from trainer.optim.noise import DrawKey, Stream, seeded_normal

KEY = DrawKey(seed=1, stream=Stream.TRAINING, step=5, sample=2)


def test_noise_is_normal():
    e = seeded_normal(torch.empty(200_000, dtype=torch.float64), KEY, 0)
    moments = torch.stack([e.mean(), e.square().mean(), e.pow(3).mean(), e.pow(4).mean()])
    torch.testing.assert_close(moments, torch.tensor([0.0, 1.0, 0.0, 3.0], dtype=torch.float64), atol=0.05, rtol=0)
    assert 4 < e.abs().max() < 6.5


def test_equal_keys_draw_equal_noise_whatever_happens_in_between():
    like = torch.empty(100)
    first = seeded_normal(like, KEY, 3)
    torch.manual_seed(7)
    torch.randn(10)
    assert torch.equal(seeded_normal(like, KEY, 3), first)


def test_each_part_of_the_key_gives_other_noise():
    like = torch.empty(20_000)
    keys = [
        (KEY, 0),
        (KEY, 1),
        (KEY._replace(seed=2), 0),
        (KEY._replace(stream=Stream.LABEL_NOISE), 0),
        (KEY._replace(step=6), 0),
        (KEY._replace(sample=3), 0),
    ]
    draws = torch.stack([seeded_normal(like, draw, index) for draw, index in keys])
    correlation = torch.corrcoef(draws) - torch.eye(len(keys))
    assert correlation.abs().max() < 0.04


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    seeded_normal(torch.empty(10), KEY, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_has_the_layout_of_its_parameter():
    like = torch.empty(4, 3, 5, 5).to(memory_format=torch.channels_last)
    e = seeded_normal(like, KEY, 0)
    assert e.stride() == like.stride()
    assert e.shape == like.shape
    assert seeded_normal(torch.empty(()), KEY, 0).shape == ()
