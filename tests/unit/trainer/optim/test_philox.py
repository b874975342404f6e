"""The compiled noise: Philox word for word, and as normal and as independent as its size allows to tell."""

import math

import numpy as np
import pytest
import torch
from numba import njit, uint32
from scipy import stats

from trainer.optim.kernels.cpu import CPUKernels
from trainer.optim.kernels.naming import BLOCK
from trainer.optim.kernels.philox import philox4x32
from trainer.optim.noise import DrawKey, Stream

KEY = DrawKey(seed=1, stream=Stream.TRAINING, step=2, sample=0)
NUM = 4_000_000
KERNELS = CPUKernels()


def draw(key=KEY, index=0, num=NUM):
    return KERNELS.normal(torch.empty(num), key, index).double()


@njit
def _call(counter, key):
    return philox4x32(
        uint32(counter[0]), uint32(counter[1]), uint32(counter[2]), uint32(counter[3]), uint32(key[0]), uint32(key[1])
    )


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_words_published_with_it(counter, key, expected):
    assert _call(np.array(counter, np.uint32), np.array(key, np.uint32)) == expected


def test_moments_are_those_of_a_normal():
    e = draw()
    # Four standard errors of each sample moment: those of a normal are 0, 1, 0, 3, 0, 15.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)):
        assert abs(float(e.pow(power).mean()) - moment) < 4 * math.sqrt(variance / NUM)


def test_distribution_is_normal_and_so_are_its_tails():
    e = draw().numpy()
    assert stats.kstest(e, "norm").pvalue > 1e-3
    for bound in (2.0, 3.0, 4.0, 4.5):
        for side in (e > bound, e < -bound):
            expected = NUM * stats.norm.sf(bound)
            assert abs(int(side.sum()) - expected) < 4.5 * math.sqrt(expected)


def test_the_largest_is_where_the_largest_of_so_many_lies():
    """200 million: no cut at 5.8, where 24 random bits would end."""
    largest = max(float(draw(KEY._replace(step=step)).abs().max()) for step in range(50))
    assert 5.2 < largest < 6.8


def test_words_make_all_angles_and_radii():
    """Each lane's pairs, (x, y): evenly spread angles, and a radius that knows nothing of them."""
    blocks = draw(num=BLOCK * 2000).numpy().reshape(-1, 4, BLOCK // 4)
    for x, y in ((blocks[:, 0], blocks[:, 1]), (blocks[:, 2], blocks[:, 3])):
        angle, radius = np.arctan2(y, x).ravel(), np.hypot(x, y).ravel()
        assert stats.kstest((angle + math.pi) / (2 * math.pi), "uniform").pvalue > 1e-3
        assert stats.kstest(np.exp(-0.5 * radius**2), "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(np.cos(angle), radius)[0, 1]) < 5 / math.sqrt(angle.size)


OTHERS = {
    "step": (KEY._replace(step=3), 0),
    "sample": (KEY._replace(sample=1), 0),
    "rank": (KEY._replace(rank=1), 0),
    "stream": (KEY._replace(stream=Stream.PREDICTION), 0),
    "seed": (KEY._replace(seed=2), 0),
    "high half of the seed": (KEY._replace(seed=1 + 2**32), 0),
    "parameter": (KEY, 1),
}


@pytest.mark.parametrize(("key", "index"), OTHERS.values(), ids=OTHERS.keys())
def test_noise_of_other_names_is_uncorrelated(key, index):
    ours, others = draw(), draw(key, index)
    bound = 5 / math.sqrt(NUM)
    assert abs(float((ours * others).mean())) < bound
    assert abs(float(((ours.square() - 1) * (others.square() - 1)).mean() / 2)) < bound
    assert abs(float((ours[1:] * others[:-1]).mean())) < bound  # nor is one the other, shifted


@pytest.mark.parametrize("lag", [1, 2, 4, 255, 256, 257, 512, 768, 1024, 2048])
def test_elements_are_uncorrelated(lag):
    """The lags at which lanes, words and blocks meet."""
    e = draw()
    bound = 5 / math.sqrt(NUM)
    assert abs(float((e[lag:] * e[:-lag]).mean())) < bound
    assert abs(float(((e[lag:].square() - 1) * (e[:-lag].square() - 1)).mean() / 2)) < bound


def test_a_part_is_the_same_in_a_larger_tensor():
    assert torch.equal(draw(num=5000), draw(num=70_000)[:5000])


def test_noise_fills_memory_in_its_own_order():
    flat = KERNELS.normal(torch.empty(2 * 3 * 4 * 5), KEY, 0)
    like = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    e = KERNELS.normal(like, KEY, 0)
    assert e.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(e.permute(0, 2, 3, 1).flatten(), flat)
