"""IVON as an optimizer: what it restores, what it leaves alone, and what it skips."""

import math

import pytest
import torch
import torch.nn.functional as F
from ivon_net import IMAGES, LABELS, assert_same, small_net, snapshot, take_steps
from torch import nn

from trainer.optim import kernels
from trainer.optim.ivon import IVON


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


# ----------------------------------------------------------------------------------------------------- what it restores


@pytest.mark.parametrize("train", [True, False])
def test_an_exception_leaves_the_mean(train):
    model = small_net()
    optimizer = IVON(model.parameters(), lr=0.1, ess=100)
    before = [p.detach().clone() for p in model.parameters()]

    def fail():
        assert not torch.equal(model[0].weight, before[0])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), optimizer.sampled_params(train=train):
        fail()
    assert_same(list(model.parameters()), before)


def test_an_exception_discards_the_samples_of_the_step():
    model, twin = small_net(), small_net()
    optimizer, other = (IVON(m.parameters(), lr=0.1, ess=100, mc_samples=2) for m in (model, twin))
    with optimizer.sampled_params(train=True):
        F.cross_entropy(model(IMAGES), LABELS).backward()
    with pytest.raises(ZeroDivisionError), optimizer.sampled_params(train=True):
        raise ZeroDivisionError
    take_steps(model, optimizer, 3)
    take_steps(twin, other, 3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_failing_noise_source_leaves_the_mean():
    def broken(parameter, draw, index):
        if index == 2:
            raise MemoryError
        return torch.ones_like(parameter)

    model = small_net()
    optimizer = IVON(model.parameters(), lr=0.1, ess=100, noise=broken)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(MemoryError), optimizer.sampled_params(train=True):
        pass
    assert_same(list(model.parameters()), before)


def test_storage_and_memory_format_stay():
    model = small_net().to(memory_format=torch.channels_last)
    pointers = [p.data_ptr() for p in model.parameters()]
    optimizer = IVON(model.parameters(), lr=0.1, ess=100)
    take_steps(model, optimizer, 3)
    weight = model[0].weight
    assert [p.data_ptr() for p in model.parameters()] == pointers
    for tensor in (weight, optimizer.state[weight]["hess"], optimizer.state[weight]["momentum"]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


def test_contiguous_state_loads_into_channels_last_weights():
    model = small_net()
    optimizer = IVON(model.parameters(), lr=0.1, ess=100)
    take_steps(model, optimizer, 1)
    other = small_net().to(memory_format=torch.channels_last)
    loaded = IVON(other.parameters(), lr=0.1, ess=100)
    loaded.load_state_dict(optimizer.state_dict())
    hess = loaded.state[other[0].weight]["hess"]
    assert hess.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(hess, optimizer.state[model[0].weight]["hess"])


@pytest.mark.parametrize("smallest_fused", [1, kernels.MIN_FUSED_WEIGHTS], ids=["compiled", "plain"])
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (40, 40, 9, 9)])  # the larger is worked through in pieces
def test_state_follows_weights_that_move_to_another_memory_format(shape, smallest_fused, monkeypatch):
    monkeypatch.setattr(kernels, "MIN_FUSED_WEIGHTS", smallest_fused)
    slopes = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    ends = []
    for is_moved in (False, True):
        layer = nn.ParameterList([torch.ones(shape)])
        optimizer = IVON(layer.parameters(), lr=0.1, ess=100, beta2=0.5, hess_approx="gradsq")
        for step in range(4):
            if is_moved and step == 2:
                layer.to(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with optimizer.sampled_params(train=True):
                (slopes * layer[0]).sum().backward()
            optimizer.step()
        ends.append([layer[0].detach(), *optimizer.posterior().standard_deviations()])
    for plain, moved in zip(*ends, strict=True):
        assert plain.stride() != moved.stride()
        torch.testing.assert_close(plain, moved)


# ------------------------------------------------------------------------------------------------- what it leaves alone


def test_frozen_parameters_get_no_noise_and_no_decay_and_change_no_ones_noise():
    model, twin = small_net(), small_net()
    model[0].weight.requires_grad_(False)
    optimizer, other = (IVON(m.parameters(), lr=0.1, ess=100, weight_decay=0.1) for m in (model, twin))
    frozen = model[0].weight.clone()
    with optimizer.sampled_params(train=True), other.sampled_params(train=True):
        assert torch.equal(model[0].weight, frozen)
        assert torch.equal(model[4].weight, twin[4].weight)
        F.cross_entropy(model(IMAGES), LABELS).backward()
    optimizer.step()
    assert torch.equal(model[0].weight, frozen)
    assert model[0].weight not in optimizer.state


@pytest.mark.parametrize("mc_samples", [1, 2])
def test_a_gradient_left_over_in_a_frozen_parameter_counts_for_nothing(mc_samples):
    weight, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = IVON([weight, frozen], lr=0.1, ess=100, mc_samples=mc_samples)
    for _ in range(mc_samples):
        with optimizer.sampled_params(train=True):
            weight.grad, frozen.grad = torch.ones(3), torch.full((3,), math.nan)
    optimizer.step()
    assert optimizer.num_skipped_steps == 0
    assert torch.equal(frozen, torch.ones(3))
    assert not torch.equal(weight, torch.ones(3))


@pytest.mark.parametrize("mc_samples", [1, 2])
def test_a_parameter_without_a_gradient_does_not_move(mc_samples):
    model = small_net()
    unused = nn.Parameter(torch.ones(3))
    optimizer = IVON([*model.parameters(), unused], lr=0.1, ess=100, weight_decay=0.1, mc_samples=mc_samples)
    take_steps(model, optimizer, 2)
    assert torch.equal(unused, torch.ones(3))
    assert optimizer.state[unused]["step"] == 0
    assert optimizer.state[model[0].weight]["step"] == 2


@pytest.mark.parametrize("mc_samples", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_gradient_that_is_not_finite_skips_the_step_and_poisons_nothing(bad, mc_samples):
    model, twin = small_net(), small_net()
    optimizer, other = (IVON(m.parameters(), lr=0.1, ess=100, mc_samples=mc_samples) for m in (model, twin))
    take_steps(model, optimizer, 2)
    before = snapshot(model, optimizer)
    for sample in range(mc_samples):
        optimizer.zero_grad()
        with optimizer.sampled_params(train=True):
            F.cross_entropy(model.eval()(IMAGES), LABELS).backward()
            if sample == 0:
                model[4].bias.grad[1] = bad
    optimizer.step()
    model.train()
    assert_same(snapshot(model, optimizer), before)
    assert optimizer.num_skipped_steps == 1
    assert optimizer.state_dict()["ivon"]["num_skipped"] == 1

    take_steps(twin, other, 2)
    other.load_state_dict(optimizer.state_dict())
    assert other.num_skipped_steps == 1
    take_steps(model, optimizer, 2)
    take_steps(twin, other, 2)
    assert_same(snapshot(model, optimizer), snapshot(twin, other))
    assert all(torch.isfinite(tensor).all() for tensor in snapshot(model, optimizer))


@pytest.mark.parametrize("mc_samples", [1, 2])
@pytest.mark.parametrize("hess_approx", ["price", "gradsq"])
@pytest.mark.parametrize("size", 10.0 ** torch.arange(2, 16, 1.0, dtype=torch.float64).numpy(), ids="{:.0e}".format)
def test_no_gradient_however_large_overflows_the_hessian(hess_approx, mc_samples, size):
    model = small_net()
    optimizer = IVON(model.parameters(), lr=0.1, ess=1e6, beta2=0.9, hess_approx=hess_approx, mc_samples=mc_samples)
    take_steps(model, optimizer, 1)
    before = snapshot(model, optimizer)
    for _ in range(mc_samples):
        optimizer.zero_grad()
        with optimizer.sampled_params(train=True):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, size)
    optimizer.step()
    after = snapshot(model, optimizer)
    assert all(torch.isfinite(tensor).all() for tensor in after)
    if size < 1e3:
        assert optimizer.num_skipped_steps == 0
    if size > 1e12:
        assert optimizer.num_skipped_steps == 1
        assert_same(after, before)
