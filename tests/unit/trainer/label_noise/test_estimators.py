"""Both estimators of ε against cases that can be worked out otherwise, and what they leave as they found it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp

from trainer.label_noise.estimators import estimate, posterior_of
from trainer.optim.ivon import IVON
from trainer.optim.noise import DrawKey, Stream

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


def measure(model, posterior, images=IMAGES, *, num_mc_samples=8, epoch=1, **options):
    options = {"estimator": "both", "seed": 3, **options}
    return estimate(model, posterior, images, num_mc_samples=num_mc_samples, epoch=epoch, **options)


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


def linearised_by_jvp(model, posterior, num_pairs, epoch):
    """Eq. 20 as it is written, by forward-mode differentiation along σ⊙e of the same draws; ‖ε‖² averaged over them."""
    names = [name for name, _ in model.named_parameters()]
    mean = {name: p.detach() for name, p in model.named_parameters()}
    squares_B = torch.zeros(len(IMAGES), dtype=torch.float64)
    for pair in range(num_pairs):
        draw = DrawKey(3, Stream.LABEL_NOISE, epoch, pair)
        direction = {
            name: posterior.noise(factor.parameter, draw, factor.index) * factor.standard_deviation()
            for name, factor in zip(names, posterior.factors, strict=True)
        }
        _, epsilon_BC = jvp(lambda w: functional_call(model, w, (IMAGES,)).softmax(1), (mean,), (direction,))
        squares_B += epsilon_BC.square().sum(1) / num_pairs
    return squares_B.detach()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own forward mode uses it
def test_linearised_is_the_jvp_up_to_third_order():
    model = tanh_net()
    errors = []
    for ess in (1600.0, 6400.0, 25600.0):  # σ halves each time
        posterior = posterior_for(model, ess)
        expected_B = linearised_by_jvp(model, posterior, num_pairs=4, epoch=1).sqrt()
        found_B = measure(model, posterior).linearised_sq_B.sqrt()
        errors.append((found_B - expected_B).abs().max().item())
    assert errors[-1] < 2e-3 * expected_B.max().item()
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.15)


def test_orders_in_sigma():
    """Halving σ quarters the exact ε and halves the linearised one."""
    model = tanh_net()
    wide, narrow = (measure(model, posterior_for(model, ess)) for ess in (2000.0, 8000.0))
    ratio_exact = wide.exact_BC.norm() / narrow.exact_BC.norm()
    ratio_linearised = (wide.linearised_sq_B.sum() / narrow.linearised_sq_B.sum()).sqrt()
    assert ratio_exact.item() == pytest.approx(4, rel=0.05)
    assert ratio_linearised.item() == pytest.approx(2, rel=0.05)


# -------------------------------------------------------------------------------------------------------------- its use


def test_batches_microbatches_and_ranks_see_the_same_draws():
    model = tanh_net()
    posterior = posterior_for(model, 100.0)
    whole = measure(model, posterior)
    parts = [measure(model, posterior, part) for part in IMAGES.split(15)]
    small = measure(model, posterior, microbatch=7)
    for name in ("logits_mean_BC", "exact_BC", "linearised_sq_B"):
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
    assert torch.equal(point.logits_mean_BC, model(IMAGES).detach())
    assert point.exact_BC is None
    assert point.linearised_sq_B is None


def test_components_of_exact_sum_to_zero():
    exact_BC = measure(tanh_net(), posterior_for(tanh_net(), 10.0)).exact_BC
    assert exact_BC.sum(1).abs().max() < 1e-14


@pytest.mark.parametrize("num_mc_samples", [0, 1, 7])
def test_samples_come_in_pairs(num_mc_samples):
    with pytest.raises(ValueError, match=f"num_mc_samples {num_mc_samples}"):
        measure(tanh_net(), None, num_mc_samples=num_mc_samples)


def test_the_model_is_left_as_it_was():
    """Weights, BatchNorm's statistics, the mode of each module (a frozen BatchNorm stays in eval); and no gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(64, 5))
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    posterior = posterior_for(model, 10.0)
    images = torch.randn(8, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        noise = measure(model, posterior, images)
    assert noise.logits_mean_BC.dtype == torch.float32
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
