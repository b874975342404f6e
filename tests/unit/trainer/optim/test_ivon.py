"""IVON as an optimizer: what it leaves alone, what it restores, what it saves, and where it converges."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.optim import kernels
from trainer.optim.ivon import IVON
from trainer.optim.ivon_rules import next_hessian


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))


IMAGES = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 5


def take_steps(model, optimizer, num_steps):
    for _ in range(num_steps):
        for _ in range(optimizer.mc_samples):
            optimizer.zero_grad()
            with optimizer.sampled_params(train=True):
                F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()


def snapshot(model, optimizer):
    states = [optimizer.state[p][name] for p in model.parameters() for name in ("step", "momentum", "hess")]
    return [tensor.detach().clone() for tensor in (*model.state_dict().values(), *states)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mc_samples": 2},
        {"mc_samples": 4, "antithetic": True},
        {"debias": False},
        {"hess_approx": "gradsq"},
        {"fixed_hessian": True},
    ],
    ids=str,
)
def test_resuming_is_exact(options):
    whole = small_net()
    optimizer = IVON(whole.parameters(), lr=0.1, ess=100, beta2=0.99, seed=3, **options)
    take_steps(whole, optimizer, 8)

    first = small_net()
    before = IVON(first.parameters(), lr=0.1, ess=100, beta2=0.99, seed=3, **options)
    take_steps(first, before, 4)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": before.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(999)  # the state of torch's own generators doesn't matter
    second = small_net()
    second.load_state_dict(saved["model"])
    after = IVON(second.parameters(), lr=9.0, ess=1)  # all of this comes from the checkpoint
    after.load_state_dict(saved["optimizer"])
    take_steps(second, after, 4)

    assert_same(snapshot(second, after), snapshot(whole, optimizer))


def test_saving_before_the_first_step_resumes_too():
    model, twin = small_net(), small_net()
    optimizer, other = IVON(model.parameters(), lr=0.1, ess=100), IVON(twin.parameters(), lr=0.1, ess=100)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(model, optimizer, 2)
    take_steps(twin, other, 2)
    assert_same(snapshot(model, optimizer), snapshot(twin, other))


def test_state_of_another_optimizer_is_refused():
    model = small_net()
    with pytest.raises(ValueError, match="'ivon'"):
        IVON(model.parameters(), lr=0.1, ess=100).load_state_dict(torch.optim.SGD(model.parameters()).state_dict())


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


# ------------------------------------------------------------------------------------------------------------- sampling


def test_antithetic_samples_mirror_each_other():
    model = small_net()
    optimizer = IVON(model.parameters(), lr=0.1, ess=100, mc_samples=4, antithetic=True)
    mean = model[0].weight.detach().clone()
    offsets = []
    for _ in range(4):
        with optimizer.sampled_params(train=True):
            offsets.append(model[0].weight.detach() - mean)
    torch.testing.assert_close(offsets[0], -offsets[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(offsets[2], -offsets[3], rtol=0, atol=1e-6)
    assert (offsets[0] - offsets[2]).abs().max() > 0.01


def test_samples_have_the_posterior_standard_deviation():
    parameter = nn.Parameter(torch.zeros(20_000))
    optimizer = IVON([parameter], lr=0.1, ess=50.0, hess_init=0.3, weight_decay=0.02)
    with optimizer.sampled_params():
        first = parameter.detach().clone()
    with optimizer.sampled_params():
        second = parameter.detach().clone()
    assert first.std().item() == pytest.approx(1 / math.sqrt(50 * 0.32), rel=0.02)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 0.03


def test_prediction_samples_do_not_disturb_training():
    model, twin = small_net(), small_net()
    optimizer, other = (IVON(m.parameters(), lr=0.1, ess=100) for m in (model, twin))
    for _ in range(2):
        take_steps(model, optimizer, 1)
        take_steps(twin, other, 1)
        with optimizer.sampled_params():
            pass
    assert_same(snapshot(model, optimizer), snapshot(twin, other))


def test_predictions_draw_other_noise_than_training_and_go_on_after_a_resumption():
    weight = nn.Parameter(torch.zeros(1000))
    optimizer = IVON([weight], lr=0.0, ess=100)

    def sample(optimizer, *, train):
        with optimizer.sampled_params(train=train):
            weight.sum().backward()
            return weight.detach().clone()

    drawn = [sample(optimizer, train=False) for _ in range(2)]
    for _ in range(3):
        drawn.append(sample(optimizer, train=True))
        optimizer.step()
    resumed = IVON([weight], lr=0.0, ess=100)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    drawn.append(sample(optimizer, train=False))
    assert torch.equal(sample(resumed, train=False), drawn[-1])
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(6)
    assert correlation.abs().max() < 0.2


def test_a_first_prediction_may_be_in_inference_mode():
    model, twin = small_net(), small_net()
    optimizer, other = (IVON(m.parameters(), lr=0.1, ess=100) for m in (model, twin))
    with torch.inference_mode(), optimizer.sampled_params():
        pass
    take_steps(model, optimizer, 2)
    take_steps(twin, other, 2)
    assert_same(snapshot(model, optimizer), snapshot(twin, other))


def test_each_sample_is_seen_through_an_autocast_around_all_of_them():
    model = nn.Linear(4, 3)
    optimizer = IVON(model.parameters(), lr=0.1, ess=10, mc_samples=2)
    inputs, outputs = torch.randn(5, 4), []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            with optimizer.sampled_params(train=True):
                expected = F.linear(inputs, model.weight.detach().clone(), model.bias.detach().clone())
                outputs.append(model(inputs))
                assert torch.equal(outputs[-1], expected)
                outputs[-1].sum().backward()
        assert torch.equal(model(inputs), F.linear(inputs, model.weight.clone(), model.bias.clone()))
    assert not torch.equal(*outputs)


def test_sigma_of_the_step_is_that_of_the_sample():
    """A schedule that moves ess between sampling and step doesn't change the Hessian's estimate."""
    hessians = []
    for factor in (1, 10):
        model = small_net()
        optimizer = IVON(model.parameters(), lr=0.1, ess=100, beta2=0.5)
        with optimizer.sampled_params(train=True):
            F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.param_groups[0]["ess"] *= factor
        optimizer.step()
        hessians.append([optimizer.state[p]["hess"] for p in model.parameters()])
    assert_same(*hessians)


def test_gradients_accumulate_inside_a_sample():
    whole, parts = small_net().eval(), small_net().eval()
    a, b = (IVON(m.parameters(), lr=0.1, ess=100, beta2=0.9) for m in (whole, parts))
    with a.sampled_params(train=True):
        F.cross_entropy(whole(IMAGES), LABELS).backward()
    with b.sampled_params(train=True):
        for rows in (slice(0, 8), slice(8, 16)):
            (F.cross_entropy(parts(IMAGES[rows]), LABELS[rows]) / 2).backward()
    a.step()
    b.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("mc_samples", [1, 2])
def test_gradients_may_be_cleared_inside_the_sample(mc_samples):
    """As ivon-opt's own description has it."""
    model, twin = small_net(), small_net()
    optimizer, other = (IVON(m.parameters(), lr=0.1, ess=100, mc_samples=mc_samples) for m in (model, twin))
    for _ in range(3):
        for _ in range(mc_samples):
            with optimizer.sampled_params(train=True):
                optimizer.zero_grad()
                F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
    take_steps(twin, other, 3)
    assert_same(snapshot(model, optimizer), snapshot(twin, other))


def test_calls_out_of_order_are_refused():
    model = small_net()
    optimizer = IVON(model.parameters(), lr=0.1, ess=100)
    with pytest.raises(RuntimeError, match="sampled_params"):
        optimizer.step()
    take_steps(model, optimizer, 1)
    with optimizer.sampled_params(train=True):
        pass
    with pytest.raises(RuntimeError, match="step\\(\\)"), optimizer.sampled_params(train=True):
        pass


@pytest.mark.parametrize("sample", [0, 1])
def test_calls_inside_an_open_sample_are_refused(sample):
    model = small_net()
    optimizer = IVON(model.parameters(), lr=0.1, ess=100, mc_samples=2)
    before = [p.detach().clone() for p in model.parameters()]
    for misuse, message in ((optimizer.step, "stands after it"), (lambda: take_steps(model, optimizer, 1), "open")):
        for _ in range(sample):
            with optimizer.sampled_params(train=True):
                F.cross_entropy(model(IMAGES), LABELS).backward()
        with pytest.raises(RuntimeError, match=message), optimizer.sampled_params(train=True):
            misuse()
        assert_same(list(model.parameters()), before)
        assert all(optimizer.state[p]["step"] == 0 for p in model.parameters())


def test_step_with_a_closure_returns_its_loss():
    model = small_net()
    optimizer = IVON(model.parameters(), lr=0.1, ess=100)

    def closure():
        optimizer.zero_grad()
        with optimizer.sampled_params(train=True):
            loss = F.cross_entropy(model(IMAGES), LABELS)
            loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_a_closure_is_called_for_each_sample_and_the_mean_loss_returned():
    model, twin = small_net(), small_net()
    optimizer, other = (IVON(m.parameters(), lr=0.1, ess=100, mc_samples=2) for m in (model, twin))
    losses = []

    def closure():
        optimizer.zero_grad()
        with optimizer.sampled_params(train=True):
            loss = F.cross_entropy(model(IMAGES), LABELS)
            loss.backward()
        losses.append(loss.item())
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(sum(losses) / 2)
    assert losses[0] != losses[1]
    take_steps(twin, other, 1)
    assert_same(snapshot(model, optimizer), snapshot(twin, other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr -1.0"),
        ({"ess": 0}, "ess 0"),
        ({"hess_init": 0.0}, "hess_init 0.0"),
        ({"beta1": 1.0}, "beta1 1.0"),
        ({"beta2": 1.5}, "beta2 1.5"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"clip_radius": 0.0}, "clip_radius"),
        ({"mc_samples": 0}, "mc_samples 0"),
        ({"mc_samples": 3, "antithetic": True}, "mc_samples 3"),
    ],
)
def test_meaningless_hyperparameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IVON(small_net().parameters(), **{"lr": 0.1, "ess": 100, **options})


def test_groups_have_their_own_hyperparameters():
    model = small_net()
    optimizer = IVON([{"params": model[0].parameters(), "lr": 0.0, "hess_init": 2.0}], lr=0.1, ess=100)
    optimizer.add_param_group({"params": list(model[4].parameters())})
    fixed, moving = model[0].weight.detach().clone(), model[4].weight.detach().clone()
    take_steps(model, optimizer, 1)
    assert torch.equal(model[0].weight, fixed)
    assert not torch.equal(model[4].weight, moving)
    assert optimizer.state[model[0].weight]["hess"].mean().item() == pytest.approx(2.0, rel=1e-3)
    assert optimizer.state[model[4].weight]["hess"].mean().item() == pytest.approx(1.0, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------- convergence


def test_hessian_halves_at_most():
    hess, estimate = torch.rand(1000) + 1e-3, 100 * torch.randn(1000)
    new = next_hessian(hess, estimate, weight_decay=1e-4, beta2=0.9)
    assert (new + 1e-4 >= (hess + 1e-4) / 2 * (1 - 1e-5)).all()


def test_posterior_of_a_quadratic_is_found():
    """Loss ½Σaᵢ(θᵢ-cᵢ)² and prior precision λδ: the posterior has mean ac/(a+δ) and precision λ(a+δ)."""
    a, c = torch.tensor([0.1, 0.5, 1.0, 4.0, 10.0]), torch.tensor([1.0, -2.0, 3.0, 0.5, -1.0])
    ess, decay, num_steps = 200.0, 0.05, 4000
    theta = nn.Parameter(torch.zeros(5))
    optimizer = IVON(
        [theta], lr=0.1, ess=ess, beta2=0.999, weight_decay=decay, mc_samples=2, antithetic=True, rescale_lr=False
    )
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / num_steps)
        for _ in range(2):
            optimizer.zero_grad()
            with optimizer.sampled_params(train=True):
                (0.5 * a * (theta - c).square()).sum().backward()
        optimizer.step()
    (sigma,) = optimizer.posterior().standard_deviations()
    torch.testing.assert_close(theta.detach(), a * c / (a + decay), rtol=0.01, atol=0)
    torch.testing.assert_close(sigma, (ess * (a + decay)).rsqrt(), rtol=0.06, atol=0)
