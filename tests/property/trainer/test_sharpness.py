"""Perturbations of any weights: their length, their direction, and that nothing of them remains."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainer.optim.bsam import next_mean, next_momentum, next_precision
from trainer.optim.looksam import across, correction
from trainer.optim.msam import msam_directions
from trainer.optim.perturbation import SMALLEST_NORM, displaced
from trainer.optim.sam import asam_directions, sam_directions

SHAPES = st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**31)
SCALES = st.sampled_from([1e-6, 1.0, 1e6])


def normal(shapes, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def vector(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@settings(deadline=None)
@given(SHAPES, SEEDS, SCALES)
def test_directions_have_length_one_along_and_against(shapes, seed, scale):
    tensors = normal(shapes, seed, scale)
    along, against = vector(sam_directions(tensors)), vector(msam_directions(tensors))
    norm = vector(tensors).norm().item()
    length = norm / (norm + SMALLEST_NORM)  # 1, but for the smallest gradients
    assert along.norm().item() == pytest.approx(length, rel=1e-9)
    assert (along @ vector(tensors)).item() == pytest.approx(length * norm, rel=1e-9)
    assert torch.equal(along, -against)


@settings(deadline=None)
@given(SHAPES, SEEDS)
def test_asams_direction_follows_a_rescaling_of_the_weights(shapes, seed):
    """Weights c⊙w with the same function have the gradient g/c, and move by c times as much."""
    weights, gradients = normal(shapes, seed), normal(shapes, seed + 1)
    factors = [tensor.abs() + 0.1 for tensor in normal(shapes, seed + 2)]
    plain = asam_directions(weights, gradients)
    scaled = asam_directions(
        [c * w for c, w in zip(factors, weights, strict=True)], [g / c for c, g in zip(factors, gradients, strict=True)]
    )
    for c, expected, found in zip(factors, plain, scaled, strict=True):
        torch.testing.assert_close(found, c * expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(SHAPES, SEEDS)
def test_looksams_component_is_what_remains_across_the_gradient(shapes, seed):
    plain, perturbed = normal(shapes, seed), normal(shapes, seed + 1)
    component = across(perturbed, sam_directions(plain))
    norm = vector(plain).norm()
    cosine = vector(component) @ vector(plain) / norm
    tolerance = 1e-9 + 2 * SMALLEST_NORM / norm.item()  # the direction is that much shorter than 1
    assert cosine.item() == pytest.approx(0, abs=tolerance * vector(perturbed).norm().item() + 1e-12)
    along = vector(perturbed) - vector(component)
    projection = (vector(perturbed) @ vector(plain)) / (vector(plain) @ vector(plain)) * vector(plain)
    torch.testing.assert_close(along, projection, rtol=1e-6, atol=1e-9)


@settings(deadline=None)
@given(SHAPES, SEEDS, st.floats(0, 3))
def test_looksams_correction_is_as_long_as_alpha_says(shapes, seed, alpha):
    gradients, components = normal(shapes, seed), normal(shapes, seed + 1)
    found = vector(correction(gradients, components, alpha))
    assert found.norm().item() == pytest.approx(alpha * vector(gradients).norm().item(), rel=1e-6)


@settings(deadline=None)
@given(SHAPES, SEEDS, SCALES, st.booleans())
def test_displaced_weights_come_back_bit_for_bit(shapes, seed, scale, fails):
    parameters = [nn.Parameter(tensor.float()) for tensor in normal(shapes, seed)]
    offsets = [tensor.float() for tensor in normal(shapes, seed + 1, scale)]
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with displaced(parameters, offsets):
            for parameter, old, offset in zip(parameters, before, offsets, strict=True):
                assert torch.equal(parameter, old + offset)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    for parameter, old in zip(parameters, before, strict=True):
        assert torch.equal(parameter, old)


@settings(deadline=None)
@given(SHAPES, SEEDS, st.floats(0, 1), st.floats(1e-3, 1))
def test_bsams_precision_stays_above_its_floor(shapes, seed, rate, floor):
    precisions = [tensor.abs() + floor for tensor in normal(shapes, seed)]
    magnitudes = [tensor.abs() for tensor in normal(shapes, seed + 1)]
    found = next_precision(precisions, magnitudes, floor, torch.tensor(rate, dtype=torch.float64))
    assert (vector(found) >= floor * (1 - 1e-9)).all()


@settings(deadline=None)
@given(SHAPES, SEEDS)
def test_bsams_rules_at_rate_zero_change_nothing(shapes, seed):
    """That is how a step is skipped."""
    a, b, c = normal(shapes, seed), normal(shapes, seed + 1), [t.abs() + 0.1 for t in normal(shapes, seed + 2)]
    zero = torch.zeros((), dtype=torch.float64)
    assert torch.equal(vector(next_momentum(a, b, c, 0.1, zero)), vector(a))
    assert torch.equal(vector(next_mean(a, b, c, zero)), vector(a))
    assert torch.equal(vector(next_precision(c, a, 0.1, zero)), vector(c))
