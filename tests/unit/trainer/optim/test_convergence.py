"""IVON finds the Gaussian that it claims to find: a logistic regression whose best diagonal posterior is known.

The best q = N(m, diag σ²) solves E_q[∇risk] = 0 and 1/σ² = diag E_q[∇²risk]. Newton's method with expectations by
Gauss-Hermite finds it to 1e-12, without sampling; IVON must come there from single samples of the weights.

64 chains run side by side, the rows of one parameter: IVON is elementwise, so they share nothing but the problem. Their
mean tells a bias of a per cent from the noise that one chain ends with.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.label_noise.glm import (
    BERNOULLI,
    GaussianPosterior,
    Problem,
    design,
    newton_step,
    risk_hessian,
    variational_gradient,
    variational_hessian,
)
from trainer.optim.ivon import IVON

NUM_CHAINS, NUM_EXAMPLES, NUM_INPUTS = 64, 16, 4
WEIGHT_DECAY = 0.05
NUM_STEPS = 2000

MEAN_TOLERANCE = 0.02  # of a standard deviation
SIGMA_TOLERANCE = 0.01  # of itself


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are small: on a busy machine threads wait for one another longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logistic_regression() -> Problem:
    """Correlated inputs of different sizes, so that no two weights have one variance, nor the marginals of a full q."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs_BD = normal(NUM_EXAMPLES, 1) * 0.6 + normal(NUM_EXAMPLES, NUM_INPUTS) * torch.tensor([2.0, 1.0, 0.5, 0.3])
    f_B = inputs_BD @ torch.tensor([1.0, -1.5, 2.0, 0.0], dtype=torch.float64)
    labels_B1 = (torch.rand(NUM_EXAMPLES, generator=generator, dtype=torch.float64) < f_B.sigmoid()).double()[:, None]
    return Problem(BERNOULLI, design(inputs_BD), labels_B1, prior_precision=NUM_EXAMPLES * WEIGHT_DECAY)


def best_diagonal_posterior(problem: Problem) -> GaussianPosterior:
    """Newton's method on the variational equations."""
    q = GaussianPosterior(torch.zeros(NUM_INPUTS).double(), torch.eye(NUM_INPUTS).double())
    for _ in range(200):
        hessian_PP = variational_hessian(problem, q)
        mean_P = q.mean_P - torch.linalg.solve(hessian_PP, variational_gradient(problem, q))
        q = GaussianPosterior(mean_P, (1 / hessian_PP.diagonal()).diag())
    assert variational_gradient(problem, q).abs().max() < 1e-12
    precision_P = variational_hessian(problem, q).diagonal()
    torch.testing.assert_close(1 / q.covariance_PP.diagonal(), precision_P, rtol=1e-12, atol=0)
    return q


def laplace(problem: Problem) -> GaussianPosterior:
    """The most probable weights, and the curvature there: what a method that never leaves the mean would find."""
    theta_P = torch.zeros(NUM_INPUTS).double()
    for _ in range(50):
        theta_P = newton_step(problem, theta_P)
    return GaussianPosterior(theta_P, (1 / risk_hessian(problem, theta_P).diagonal()).diag())


def mean_error(found_P: torch.Tensor, best: GaussianPosterior) -> float:
    """The largest distance of a mean, in standard deviations."""
    return float(((found_P - best.mean_P).abs() / best.covariance_PP.diagonal().sqrt()).max())


def sigma_error(found_P: torch.Tensor, best: GaussianPosterior) -> float:
    """The largest relative error of a standard deviation."""
    return float((found_P / best.covariance_PP.diagonal().sqrt() - 1).abs().max())


def train_ivon(problem: Problem, *, batch_size: int, **options) -> IVON:
    """IVON on the mean loss of minibatches, each chain with its own; its rate falls to zero as a cosine does."""
    inputs_BD, labels_B = problem.features_BCP[:, 0].float(), problem.labels_BC[:, 0].float()
    generator = torch.Generator().manual_seed(5)
    theta_RD = nn.Parameter(torch.zeros(NUM_CHAINS, NUM_INPUTS))
    optimizer = IVON(
        [theta_RD],
        lr=0.1,
        ess=NUM_EXAMPLES,
        hess_init=0.2,
        beta2=0.9975,
        weight_decay=WEIGHT_DECAY,
        rescale_lr=False,
        **options,
    )
    for step in range(NUM_STEPS):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / NUM_STEPS)) / 2
        rows_RB = torch.rand(NUM_CHAINS, NUM_EXAMPLES, generator=generator).argsort(dim=1)[:, :batch_size]
        for _ in range(optimizer.mc_samples):
            optimizer.zero_grad()
            with optimizer.sampled_params(train=True):
                f_RB = torch.einsum("rbd,rd->rb", inputs_BD[rows_RB], theta_RD)
                losses_RB = F.binary_cross_entropy_with_logits(f_RB, labels_B[rows_RB], reduction="none")
                losses_RB.mean(dim=1).sum().backward()
        optimizer.step()
    return optimizer


SETTINGS = {
    "antithetic pairs of the whole data": {"batch_size": NUM_EXAMPLES, "mc_samples": 2, "antithetic": True},
    "one sample of minibatches": {"batch_size": 8},
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_posterior_of_a_logistic_regression_is_found(setting):
    problem = logistic_regression()
    best = best_diagonal_posterior(problem)
    optimizer = train_ivon(problem, **setting)
    (theta_RD,) = optimizer.param_groups[0]["params"]
    (sigma_RD,) = optimizer.posterior().standard_deviations()
    assert mean_error(theta_RD.detach().double().mean(dim=0), best) < MEAN_TOLERANCE
    assert sigma_error(sigma_RD.double().mean(dim=0), best) < SIGMA_TOLERANCE


def test_what_is_found_is_neither_laplace_nor_the_full_posterior():
    """Both are further from the best diagonal posterior than the tolerances are wide, by five times and more."""
    problem = logistic_regression()
    best = best_diagonal_posterior(problem)
    peak = laplace(problem)
    assert mean_error(peak.mean_P, best) > 10 * MEAN_TOLERANCE
    assert sigma_error(peak.covariance_PP.diagonal().sqrt(), best) > 5 * SIGMA_TOLERANCE
    full_PP = torch.linalg.inv(variational_hessian(problem, best))
    assert sigma_error(full_PP.diagonal().sqrt(), best) > 10 * SIGMA_TOLERANCE


@pytest.mark.parametrize("hess_approx", ["price", "gradsq"])
def test_estimators_of_the_hessian_find_what_each_stands_for(hess_approx):
    """Loss ½Σaᵢθᵢ². `price` is unbiased: h = a. λE[ĝ²] = λa²σ² = a²/(h+δ): `gradsq` settles at h(h+δ) = a², below a."""
    a_D = torch.tensor([0.02, 0.1, 0.5, 2.0])
    theta_RD = nn.Parameter(torch.zeros(NUM_CHAINS, len(a_D)))
    optimizer = IVON(
        [theta_RD],
        lr=0.02,
        ess=200,
        hess_init=0.3,
        beta2=0.99,
        weight_decay=WEIGHT_DECAY,
        rescale_lr=False,
        hess_approx=hess_approx,
    )
    total_RD, num_averaged = torch.zeros_like(theta_RD), 0
    for step in range(1500):
        optimizer.zero_grad()
        with optimizer.sampled_params(train=True):
            (0.5 * a_D * theta_RD.square()).sum().backward()
        optimizer.step()
        if step >= 1000:
            total_RD += optimizer.posterior().standard_deviations()[0]
            num_averaged += 1
    mean = total_RD.mean(dim=0) / num_averaged
    delta = WEIGHT_DECAY
    hess_D = a_D if hess_approx == "price" else ((delta**2 + 4 * a_D.square()).sqrt() - delta) / 2
    torch.testing.assert_close(mean, (200 * (hess_D + delta)).rsqrt(), rtol=0.02, atol=0)
