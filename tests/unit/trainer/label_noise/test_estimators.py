"""Both estimators of ε against cases that can be worked out otherwise, and what they leave as they found it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from trainer.label_noise import estimators
from trainer.label_noise.estimators import (
    EstimateOptions,
    estimate,
    exact,
    linearised_by_jvp,
    linearised_by_pair,
    posterior_of,
)
from trainer.model import build_model
from trainer.optim.ivon import IVON
from trainer.optim.noise import DrawKey, Stream
from trainer.spec import ModelSpec

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(40, 6, generator=GENERATOR, dtype=torch.float64)


def tanh_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def posterior_for(model, ess):
    """A posterior whose σ differs from weight to weight."""
    optimizer = IVON(model.parameters(), lr=0.1, ess=ess)
    posterior = posterior_of(optimizer)
    for factor in posterior.factors:
        factor.hess.copy_(0.5 + torch.rand(factor.hess.shape, generator=torch.Generator().manual_seed(factor.index)))
    return posterior


def measure(model, posterior, images=IMAGES, *, num_mc_samples=8, epoch=1, seed=3, **options):
    options = EstimateOptions(seed=seed, epoch=epoch, num_mc_samples=num_mc_samples, **options)
    return estimate(model, posterior, images, options)


def draws(num, *, seed=3, epoch=1):
    return [DrawKey(seed, Stream.LABEL_NOISE, epoch, i) for i in range(num)]


# ---------------------------------------------------------------------------------------------------- what is estimated


def test_exact_is_the_gauss_hermite_integral_of_logistic_regression():
    """Two classes, linear model: the difference of the logits is Gaussian, so E_q is a one-dimensional integral."""
    torch.manual_seed(0)
    model = nn.Linear(6, 2).double()
    posterior = posterior_for(model, ess=4.0)
    weight_var, bias_var = (sigma.square().sum(0) for sigma in posterior.standard_deviations())
    mean_B = (IMAGES @ (model.weight[1] - model.weight[0]) + model.bias[1] - model.bias[0]).detach()
    std_B = (IMAGES.square() @ weight_var + bias_var).sqrt()
    nodes_H, weights_H = np.polynomial.hermite_e.hermegauss(64)
    values_BH = torch.sigmoid(mean_B[:, None] + std_B[:, None] * torch.from_numpy(nodes_H))
    expected_B = torch.sigmoid(mean_B) - values_BH @ torch.from_numpy(weights_H / weights_H.sum())

    exact_BC = measure(model, posterior, num_mc_samples=1024).exact_BC

    assert expected_B.abs().max() > 0.05
    torch.testing.assert_close(exact_BC[:, 1], expected_B, rtol=0, atol=0.012)
    torch.testing.assert_close(exact_BC[:, 0], -exact_BC[:, 1])


def test_linearised_by_pairs_is_the_jvp_up_to_third_order():
    model = tanh_net()
    errors = []
    for ess in (1600.0, 6400.0, 25600.0):  # σ halves each time
        posterior = posterior_for(model, ess)
        expected_B = measure(model, posterior, linearised_by="jvp").linearised_sq_B.sqrt()
        found_B = measure(model, posterior).linearised_sq_B.sqrt()
        errors.append((found_B - expected_B).abs().max().item())
    assert errors[-1] < 2e-3 * expected_B.max().item()
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.15)


def with_norm(norm):
    """A small convolutional net as ours are, with statistics and affine weights that do something."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        norm,
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).double()
    with torch.no_grad():
        for tensor in (*norm.parameters(), *(b for b in norm.buffers() if b.is_floating_point())):
            tensor.copy_(0.5 + torch.rand(tensor.shape))
    return model.to(memory_format=torch.channels_last)


NETS = {
    "perceptron": (tanh_net, (6,)),
    "batch norm": (lambda: with_norm(nn.BatchNorm2d(8)), (3, 8, 8)),
    "group norm": (lambda: with_norm(nn.GroupNorm(2, 8)), (3, 8, 8)),
}


@pytest.mark.parametrize(("build", "shape"), NETS.values(), ids=NETS)
def test_jvp_is_equation_20_with_the_whole_jacobian(build, shape):
    """(diag p - p pᵀ) J (σ⊙e), every factor written out."""
    model = build()
    posterior = posterior_for(model, 5.0)
    images = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (draw,) = draws(1)

    found_BC = linearised_by_jvp(model, posterior, images, draw)

    model.eval()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    jacobian = jacrev(lambda w: functional_call(model, w, (images,)))(weights)  # by name: (B, C, *shape)
    tangent_BC = torch.zeros(5, 4, dtype=torch.float64)
    for (name, parameter), factor in zip(model.named_parameters(), posterior.factors, strict=True):
        step = posterior.noise(parameter, draw, factor.index) * factor.standard_deviation()
        tangent_BC += (jacobian[name].flatten(2) * step.detach().flatten()).sum(2)
    p_BC = model(images).softmax(1).detach()
    expected_BC = torch.stack([(p.diag() - p.outer(p)) @ v for p, v in zip(p_BC, tangent_BC, strict=True)])
    assert expected_BC.abs().max() > 0.05
    torch.testing.assert_close(found_BC, expected_BC, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("arch", ["small_cnn", "resnet18"])
def test_forward_mode_goes_through_our_networks(arch):
    """Against central differences: a pair of a posterior so narrow that the third order is rounding."""
    model = build_model(ModelSpec(arch=arch), 5, seed=0).double().to(memory_format=torch.channels_last)
    posterior = posterior_for(model, 1e14)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (draw,) = draws(1)
    by_jvp_BC = linearised_by_jvp(model, posterior, images, draw)
    torch.testing.assert_close(
        by_jvp_BC, linearised_by_pair(model, posterior, images, draw), rtol=0, atol=1e-5 * by_jvp_BC.abs().max().item()
    )
    assert by_jvp_BC.abs().max() > 1e-9


def test_frozen_weights_have_no_part_in_it():
    model = tanh_net()
    model[0].requires_grad_(False)
    posterior = posterior_for(model, 1e10)
    (draw,) = draws(1)
    by_jvp_BC = linearised_by_jvp(model, posterior, IMAGES, draw)
    torch.testing.assert_close(by_jvp_BC, linearised_by_pair(model, posterior, IMAGES, draw), rtol=1e-4, atol=1e-12)
    assert posterior.factors[0].index == 2
    assert by_jvp_BC.abs().max() > 0


def test_each_estimator_by_hand():
    """Plain and antithetic, with their signs, from the predictions at the samples."""
    model = tanh_net()
    posterior = posterior_for(model, 20.0)
    p, plus, minus = model(IMAGES).softmax(1).detach(), [], []
    for draw in draws(3):
        for sign, passes in ((1.0, plus), (-1.0, minus)):
            with posterior.perturbed(draw, sign), torch.no_grad():
                passes.append(model(IMAGES).softmax(1))
    mean = torch.stack([*plus, *minus]).mean(0)
    torch.testing.assert_close(exact(model, posterior, IMAGES, draws(3)), p - mean)
    plain = exact(model, posterior, IMAGES, draws(3), antithetic=False)
    torch.testing.assert_close(plain, p - torch.stack(plus).mean(0))
    pair = linearised_by_pair(model, posterior, IMAGES, draws(3)[1])
    torch.testing.assert_close(pair, (plus[1] - minus[1]) / 2)
    assert pair.abs().max() > 1e-2


@pytest.mark.parametrize("by", ["antithetic", "jvp"])
def test_the_joint_estimate_is_that_of_each_alone(by):
    model = tanh_net()
    posterior = posterior_for(model, 20.0)
    alone = {"antithetic": linearised_by_pair, "jvp": linearised_by_jvp}[by]
    joint = measure(model, posterior, linearised_by=by)
    squares_B = torch.stack([alone(model, posterior, IMAGES, draw).square().sum(1) for draw in draws(4)]).mean(0)
    torch.testing.assert_close(joint.linearised_sq_B, squares_B)
    torch.testing.assert_close(joint.exact_BC, exact(model, posterior, IMAGES, draws(4)))
    only = measure(model, posterior, linearised_by=by, estimator="linearised")
    torch.testing.assert_close(only.linearised_sq_B, squares_B)


def test_pairs_cancel_the_first_order_that_a_plain_average_keeps():
    """At equal numbers of passes, against many pairs."""
    model = tanh_net()
    posterior = posterior_for(model, 200.0)
    converged_BC = exact(model, posterior, IMAGES, draws(2000))
    plain_BC = exact(model, posterior, IMAGES, draws(16), antithetic=False)
    paired_BC = exact(model, posterior, IMAGES, draws(8))
    assert (paired_BC - converged_BC).norm() < (plain_BC - converged_BC).norm() / 2


def test_orders_in_sigma():
    """Halving σ quarters the exact ε and halves the linearised one."""
    model = tanh_net()
    wide, narrow = (measure(model, posterior_for(model, ess)) for ess in (2000.0, 8000.0))
    ratio_exact = wide.exact_BC.norm() / narrow.exact_BC.norm()
    ratio_linearised = (wide.linearised_sq_B.sum() / narrow.linearised_sq_B.sum()).sqrt()
    assert ratio_exact.item() == pytest.approx(4, rel=0.05)
    assert ratio_linearised.item() == pytest.approx(2, rel=0.05)


# -------------------------------------------------------------------------------------------------------------- its use


@pytest.mark.parametrize("by", ["antithetic", "jvp"])
def test_batches_microbatches_and_ranks_see_the_same_draws(by, monkeypatch):
    model = tanh_net()
    posterior = posterior_for(model, 100.0)
    whole = measure(model, posterior, linearised_by=by)
    parts = [measure(model, posterior, part, linearised_by=by) for part in IMAGES.split(15)]
    monkeypatch.setattr(estimators, "MICROBATCH", 7)
    small = measure(model, posterior, linearised_by=by)
    for name in ("logits_at_mean_BC", "exact_BC", "linearised_sq_B"):
        torch.testing.assert_close(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        torch.testing.assert_close(getattr(small, name), getattr(whole, name))


def test_draws_follow_seed_and_epoch():
    model = tanh_net()
    posterior = posterior_for(model, 100.0)
    first = measure(model, posterior).linearised_sq_B
    assert torch.equal(measure(model, posterior).linearised_sq_B, first)
    assert not torch.equal(measure(model, posterior, epoch=2).linearised_sq_B, first)
    assert not torch.equal(measure(model, posterior, seed=4).linearised_sq_B, first)


def test_only_what_is_asked_for():
    model = tanh_net()
    posterior = posterior_for(model, 100.0)
    exact, linearised = (measure(model, posterior, estimator=name) for name in ("exact", "linearised"))
    assert exact.exact_BC is not None
    assert exact.linearised_sq_B is None
    assert linearised.exact_BC is None
    assert linearised.linearised_sq_B is not None
    point = measure(model, posterior_of(torch.optim.SGD(model.parameters())))
    assert torch.equal(point.logits_at_mean_BC, model(IMAGES).detach())
    assert point.exact_BC is None
    assert point.linearised_sq_B is None


def test_components_of_exact_sum_to_zero():
    exact_BC = measure(tanh_net(), posterior_for(tanh_net(), 10.0)).exact_BC
    assert exact_BC.sum(1).abs().max() < 1e-14


def test_any_optimizer_that_learns_a_posterior_gives_it():
    model = tanh_net()
    posterior = posterior_for(model, 10.0)

    class Other(torch.optim.SGD):
        def posterior(self):
            return posterior

    assert posterior_of(Other(model.parameters())) is posterior
    assert posterior_of(torch.optim.SGD(model.parameters())) is None


@pytest.mark.parametrize("num_mc_samples", [0, 1, 7])
def test_samples_come_in_pairs(num_mc_samples):
    with pytest.raises(ValueError, match=f"num_mc_samples {num_mc_samples}"):
        measure(tanh_net(), None, num_mc_samples=num_mc_samples)


@pytest.mark.parametrize("by", ["antithetic", "jvp"])
def test_the_model_is_left_as_it_was(by):
    """Weights, BatchNorm's statistics, the mode of each module (a frozen BatchNorm stays in eval); and no gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(64, 5))
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    posterior = posterior_for(model, 10.0)
    images = torch.randn(8, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        noise = measure(model, posterior, images, linearised_by=by)
    assert noise.logits_at_mean_BC.dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_a_failing_model_is_left_as_it_was():
    class Fragile(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 3:
                raise MemoryError
            return super().forward(x)

    model = Fragile(6, 2).double()
    before = model.weight.detach().clone()
    posterior = posterior_for(model, 10.0)
    with pytest.raises(MemoryError):
        measure(model, posterior)
    assert torch.equal(model.weight, before)
    assert model.training
