"""IVON as an optimizer: what it draws, what it saves, how it is called, and where it converges."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from ivon_net import IMAGES, LABELS, assert_same, small_net, snapshot, take_steps
from torch import nn

from trainer.optim.ivon import IVON
from trainer.optim.ivon_rules import next_hessian


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


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
