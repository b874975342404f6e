"""The exact cases against closed forms, scikit-learn, another quadrature, and the estimators that are to find them."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.autograd.functional import hessian
from torch.distributions import MultivariateNormal, kl_divergence

from trainer.label_noise.estimators import EstimateOptions, estimate, posterior_of
from trainer.label_noise.glm import (
    BERNOULLI,
    CATEGORICAL,
    GAUSSIAN,
    MAX_POINTS,
    POISSON,
    GaussianPosterior,
    Problem,
    design,
    expected,
    gauss_hermite,
    gradient_step,
    label_noise,
    linearised_label_noise,
    newton_step,
    predictive,
    risk_gradient,
    variational_gradient,
    variational_gradient_step,
    variational_objective,
    von_step,
    with_label_noise,
)
from trainer.optim.ivon import IVON

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def same_numbers_whatever_runs_before():
    GENERATOR.manual_seed(0)


def normal(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def wide(num_weights):
    """A full covariance with variances of about 1."""
    root = normal(num_weights, num_weights)
    return root @ root.T / num_weights + 0.1 * torch.eye(num_weights)


def one_hot(labels_B, num_classes):
    return torch.eye(num_classes, dtype=torch.float64)[labels_B]


def three_class_problem(num_examples=60, num_inputs=4):
    inputs_BD = normal(num_examples, num_inputs)
    labels_B = (inputs_BD @ normal(num_inputs, 3) + normal(num_examples, 3)).argmax(1)
    return Problem(CATEGORICAL, design(inputs_BD, 3), one_hot(labels_B, 3), prior_precision=0.5), inputs_BD, labels_B


# ---------------------------------------------------------------------------------------------------------- quadrature


def trapezoid(function, mean_BC, root_BCK):
    """E[function(f)] by a trapezoidal rule of step 0.15 over ±10 deviations: 1e-14 for a sigmoid, deviation up to 4."""
    axis = 0.15 * torch.arange(-67, 68, dtype=torch.float64)
    num_dimensions = root_BCK.shape[-1]
    grid_NK = torch.cartesian_prod(*[axis] * num_dimensions).reshape(-1, num_dimensions)
    weights_N = torch.exp(-grid_NK.square().sum(1) / 2)
    f_BNC = mean_BC[:, None] + torch.einsum("bck,nk->bnc", root_BCK, grid_NK)
    return torch.einsum("n,bn...->b...", weights_N / weights_N.sum(), function(f_BNC))


@pytest.mark.parametrize(
    ("num_nodes", "deviation", "of_mean", "of_variance"),
    [
        (64, 1.0, 3e-14, 5e-15),
        (64, 2.0, 1e-10, 7e-10),
        (64, 3.0, 2e-7, 8e-7),
        (64, 4.0, 6e-6, 3e-5),
        (128, 3.0, 2e-10, 2e-9),
        (128, 4.0, 4e-8, 2e-7),
    ],
)
def test_the_accuracy_that_is_stated_for_the_sigmoid(num_nodes, deviation, of_mean, of_variance):
    mean_BC = torch.linspace(-9, 9, 181, dtype=torch.float64)[:, None]
    root_BCK = torch.full((181, 1, 1), deviation, dtype=torch.float64)
    for function, bound in ((BERNOULLI.mean, of_mean), (BERNOULLI.variance, of_variance)):
        found = gauss_hermite(function, mean_BC, root_BCK, num_nodes)
        assert (found - trapezoid(function, mean_BC, root_BCK)).abs().max() <= bound


def test_the_accuracy_for_three_classes():
    """64² points; the sigmoid's bounds, by the deviation of the difference of two logits."""
    mean_BC = 2 * normal(12, 3)
    for deviation, bound in ((1.0, 3e-14), (2.0, 1e-10), (3.0, 2e-7)):
        covariance_BCC = torch.eye(3, dtype=torch.float64).expand(12, 3, 3) * deviation**2 / 2
        root_BCK = CATEGORICAL.root(covariance_BCC)
        found_BC = gauss_hermite(CATEGORICAL.mean, mean_BC, root_BCK)
        reference_BC = trapezoid(CATEGORICAL.mean, mean_BC, root_BCK)
        assert (found_BC - reference_BC).abs().max() <= bound


def test_dropping_a_dimension_of_the_softmax_changes_no_expectation():
    """Against a rule over all three logits."""
    problem, _, _ = three_class_problem(num_examples=3)
    posterior = GaussianPosterior(normal(12), 0.1 * wide(12))
    mean_BC, covariance_BCC = predictive(problem.features_BCP, posterior)
    root_BCK = torch.linalg.cholesky(covariance_BCC)
    for function in (CATEGORICAL.log_partition, CATEGORICAL.mean, CATEGORICAL.variance):
        found = expected(function, CATEGORICAL, problem.features_BCP, posterior)
        torch.testing.assert_close(found, gauss_hermite(function, mean_BC, root_BCK, 40), rtol=0, atol=1e-10)


@pytest.mark.parametrize("deviation", [0.5, 2.0, 4.0])
def test_the_accuracy_for_the_exponential(deviation):
    mean_BC, root_BCK = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1, 1), deviation, dtype=torch.float64)
    assert gauss_hermite(torch.exp, mean_BC, root_BCK).item() == pytest.approx(math.exp(deviation**2 / 2), rel=1e-14)


def test_polynomials_are_integrated_exactly():
    mean_BC, root_BCK = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[[3.0]]], dtype=torch.float64)
    fourth = gauss_hermite(lambda f: f[..., 0] ** 4, mean_BC, root_BCK, num_nodes=3)
    assert fourth.item() == pytest.approx(2**4 + 6 * 2**2 * 3**2 + 3 * 3**4)


def test_the_largest_rule_says_what_is_allowed():
    mean_BC = torch.zeros(1, 5, dtype=torch.float64)
    root_BCK = CATEGORICAL.root(torch.eye(5, dtype=torch.float64)[None])
    assert MAX_POINTS == 16**4
    assert gauss_hermite(CATEGORICAL.mean, mean_BC, root_BCK, 16).shape == (1, 5)
    for num_nodes in (0, 17, 64):
        with pytest.raises(ValueError, match=f"num_nodes {num_nodes} must be from 1 to 16: a rule in 4 dimensions"):
            gauss_hermite(CATEGORICAL.mean, mean_BC, root_BCK, num_nodes)


def test_an_example_of_zeros_has_no_label_noise():
    found_BC = label_noise(
        CATEGORICAL, torch.zeros(2, 3, 6, dtype=torch.float64), GaussianPosterior(normal(6), wide(6))
    )
    torch.testing.assert_close(found_BC, torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-15)


# --------------------------------------------------------------------------------------------------- what ε is like


def test_logistic_noise_peaks_beside_the_boundary_and_falls_off():
    """Fig. 2: nothing at the boundary, one peak beside it, flat far away; a wider q peaks higher and farther out."""
    mean_BC = torch.linspace(0, 25, 501, dtype=torch.float64)[:, None]
    peaks = []
    for deviation in (0.25, 0.5, 1.0, 1.5, 2.0):
        root_BCK = torch.full((501, 1, 1), deviation, dtype=torch.float64)
        epsilon_B = (mean_BC.sigmoid() - gauss_hermite(BERNOULLI.mean, mean_BC, root_BCK))[:, 0]
        peak = int(epsilon_B.argmax())
        assert epsilon_B[0].abs() < 1e-15
        assert (epsilon_B[: peak + 1].diff() > 0).all()
        assert (epsilon_B[peak:].diff() < 1e-9).all()
        assert epsilon_B[-1] < 1e-9
        peaks.append((mean_BC[peak].item(), epsilon_B[peak].item()))
    assert peaks == sorted(peaks)
    assert 1 < peaks[0][0] < peaks[-1][0] < 3


def test_noise_softens_labels_that_contradict_the_model():
    """y + ε moves towards the prediction from the wrong label, and beyond the right one."""
    features_BCP = design(torch.tensor([[2.0], [2.0], [-2.0], [-2.0]], dtype=torch.float64))
    labels_BC = torch.tensor([[0.0], [1.0], [0.0], [1.0]], dtype=torch.float64)
    posterior = GaussianPosterior(torch.ones(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64) / 4)
    noisy_BC = with_label_noise(Problem(BERNOULLI, features_BCP, labels_BC, 1.0), posterior).labels_BC
    wrong_of_positive, right_of_positive, right_of_negative, wrong_of_negative = noisy_BC[:, 0].tolist()
    assert 0 < wrong_of_positive < 0.1
    assert right_of_positive > 1
    assert right_of_negative < 0
    assert 0.9 < wrong_of_negative < 1


def test_halving_the_spread_quarters_the_noise():
    """ε → -½ Σ_cd ∂²A′/∂f_c∂f_d Cov[f_c, f_d]: second order in the deviation, by autograd of the softmax."""
    problem, _, _ = three_class_problem(num_examples=5)
    mean_P, covariance_PP = normal(12), wide(12)
    narrow = GaussianPosterior(mean_P, covariance_PP * 1e-4)
    mean_BC, covariance_BCC = predictive(problem.features_BCP, narrow)
    for f_C, covariance_CC, found_C in zip(
        mean_BC, covariance_BCC, label_noise(CATEGORICAL, problem.features_BCP, narrow), strict=True
    ):
        second_order_C = [
            -0.5 * (hessian(lambda f, c=c: f.softmax(0)[c], f_C) * covariance_CC).sum() for c in range(len(f_C))
        ]
        torch.testing.assert_close(found_C, torch.stack(second_order_C), rtol=0.01, atol=1e-9)


def test_the_linearised_noise_is_a_draw_of_the_difference_to_first_order():
    """Eq. 14: A′(f_m) - A′(f_θ) at θ = m - displacement; the rest falls with the square of the displacement."""
    problem, _, _ = three_class_problem(num_examples=20)
    mean_P, direction_P = normal(12), normal(12)
    rests = []
    for scale in (1e-2, 5e-3):
        found_BC = linearised_label_noise(CATEGORICAL, problem.features_BCP, mean_P, scale * direction_P)
        change_BC = CATEGORICAL.mean(problem.features_BCP @ mean_P) - CATEGORICAL.mean(
            problem.features_BCP @ (mean_P - scale * direction_P)
        )
        rests.append((found_BC - change_BC).norm().item())
        assert rests[-1] < 0.1 * change_BC.norm()
    assert rests[0] / rests[1] == pytest.approx(4, rel=0.05)


# --------------------------------------------------------------------------------------------------------------- steps


def test_the_objective_is_the_expected_loss_plus_the_divergence():
    """Eq. 7 as a number: least squares in closed form, the divergence from torch.distributions."""
    inputs_BD, labels_BC, posterior = normal(30, 4), normal(30, 1), GaussianPosterior(normal(4), wide(4))
    problem = Problem(GAUSSIAN, design(inputs_BD), labels_BC, prior_precision=0.7)
    f_B, covariance_PP = inputs_BD @ posterior.mean_P, posterior.covariance_PP
    loss = (f_B.square() / 2 - labels_BC[:, 0] * f_B).sum() + (inputs_BD.T @ inputs_BD @ covariance_PP).trace() / 2
    prior = MultivariateNormal(torch.zeros(4, dtype=torch.float64), precision_matrix=0.7 * torch.eye(4).double())
    divergence = kl_divergence(MultivariateNormal(posterior.mean_P, covariance_PP), prior)
    torch.testing.assert_close(variational_objective(problem, posterior), loss + divergence)


def test_the_logistic_log_partition_keeps_its_digits():
    f = torch.linspace(-60, 60, 241, dtype=torch.float64)
    expected_values = torch.logaddexp(f, torch.zeros_like(f))
    torch.testing.assert_close(BERNOULLI.log_partition(f[:, None]), expected_values, rtol=1e-15, atol=0)


def test_theorem_1_over_a_whole_descent():
    """Logistic regression with q = N(m, I), as the theorem has it: 30 steps, the labels' noise made anew at each."""
    inputs_BD = normal(40, 3)
    labels_BC = (inputs_BD @ normal(3, 1) + normal(40, 1) > 0).double()
    problem = Problem(BERNOULLI, design(inputs_BD), labels_BC, prior_precision=1.0)
    posterior = GaussianPosterior(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    theta_P = posterior.mean_P
    for _ in range(30):
        noisy = with_label_noise(problem, GaussianPosterior(theta_P, posterior.covariance_PP))
        theta_P = gradient_step(noisy, theta_P, lr=0.05)
        posterior = variational_gradient_step(problem, posterior, lr=0.05)
        torch.testing.assert_close(theta_P, posterior.mean_P, rtol=0, atol=1e-10)
    plain_P = torch.zeros_like(theta_P)
    for _ in range(30):
        plain_P = gradient_step(problem, plain_P, lr=0.05)
    assert (plain_P - theta_P).norm() > 0.1


def newton_to_rest(problem):
    theta_P = torch.zeros(problem.features_BCP.shape[-1], dtype=torch.float64)
    for _ in range(20):
        theta_P = newton_step(problem, theta_P)
    assert risk_gradient(problem, theta_P).abs().max() < 1e-10
    return theta_P


def test_newton_finds_what_scikit_learn_finds():
    problem, inputs_BD, labels_B = three_class_problem()
    fitted = LogisticRegression(C=1 / problem.prior_precision, fit_intercept=False, tol=1e-10, max_iter=10_000)
    fitted.fit(inputs_BD.numpy(), labels_B.numpy())
    np.testing.assert_allclose(newton_to_rest(problem).reshape(3, -1).numpy(), fitted.coef_, atol=1e-5)


def test_von_finds_a_known_posterior_in_one_step():
    """Bayesian linear regression, from anywhere: N((XᵀX + δI)⁻¹Xᵀy, (XᵀX + δI)⁻¹)."""
    inputs_BD, labels_BC = normal(30, 4), normal(30, 1)
    problem = Problem(GAUSSIAN, design(inputs_BD), labels_BC, prior_precision=0.7)
    found = von_step(problem, GaussianPosterior(10 * normal(4), wide(4)), rho=1.0)
    precision_PP = inputs_BD.T @ inputs_BD + 0.7 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(found.covariance_PP, torch.linalg.inv(precision_PP))
    torch.testing.assert_close(found.mean_P, torch.linalg.solve(precision_PP, inputs_BD.T @ labels_BC)[:, 0])


def test_von_is_iteratively_reweighted_least_squares_on_noisy_labels():
    """At ρ = 1, by an independent route: least squares for the working responses of y + ε with weights E_q[A″]."""
    inputs_BD = normal(30, 4)
    labels_BC = torch.poisson(inputs_BD[:, :1].exp(), generator=GENERATOR)
    problem = Problem(POISSON, design(inputs_BD), labels_BC, prior_precision=0.7)
    posterior = GaussianPosterior(0.5 * normal(4), 0.1 * wide(4))
    mean_B, noisy_B = inputs_BD @ posterior.mean_P, with_label_noise(problem, posterior).labels_BC[:, 0]
    variance_B = ((inputs_BD @ posterior.covariance_PP) * inputs_BD).sum(1)
    weights_B = torch.exp(mean_B + variance_B / 2)
    responses_B = mean_B + (noisy_B - mean_B.exp()) / weights_B
    rows = torch.cat([weights_B.sqrt()[:, None] * inputs_BD, math.sqrt(0.7) * torch.eye(4, dtype=torch.float64)])
    wanted = torch.cat([weights_B.sqrt() * responses_B, torch.zeros(4, dtype=torch.float64)])
    expected_P = torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0]
    torch.testing.assert_close(von_step(problem, posterior, rho=1.0).mean_P, expected_P, rtol=0, atol=1e-10)


def test_von_rests_where_the_objective_does():
    problem, _, _ = three_class_problem()
    posterior = GaussianPosterior(torch.zeros(12, dtype=torch.float64), torch.eye(12, dtype=torch.float64))
    for _ in range(40):
        posterior = von_step(problem, posterior, rho=0.8, num_nodes=20)
    assert variational_gradient(problem, posterior, num_nodes=20).abs().max() < 1e-9
    resting = von_step(problem, posterior, rho=1.0, num_nodes=20)
    torch.testing.assert_close(resting.covariance_PP, posterior.covariance_PP, rtol=1e-8, atol=1e-10)
    # Not where the risk does: its minimum is the gradient step's rest on labels without noise.
    assert risk_gradient(problem, posterior.mean_P).norm() > 0.1


# ---------------------------------------------------------------------------------------------- held against estimators


def test_estimators_find_the_noise_of_a_linear_softmax_model():
    """Antithetic Monte Carlo of a torch model against the quadrature, three classes, σ different for each weight."""
    inputs_BD, num_draws = normal(30, 5), 1024
    model = nn.Linear(5, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(0.5 * normal(3, 5))
    optimizer = IVON(model.parameters(), lr=0.1, ess=6.0)
    learnt = posterior_of(optimizer)
    for factor in learnt.factors:
        factor.hess.copy_(0.5 + torch.rand(factor.hess.shape, generator=GENERATOR))
    (sigma,) = learnt.standard_deviations()
    posterior = GaussianPosterior(model.weight.detach().flatten(), sigma.double().flatten().square().diag())
    features_BCP = design(inputs_BD, 3)

    found = estimate(model, learnt, inputs_BD, EstimateOptions(seed=3, epoch=1, num_mc_samples=num_draws))

    expected_BC = label_noise(CATEGORICAL, features_BCP, posterior)
    assert expected_BC.abs().max() > 0.05
    # One pair's deviation is at most about 0.25: five standard errors.
    torch.testing.assert_close(found.exact_BC, expected_BC, rtol=0, atol=5 * 0.25 / math.sqrt(num_draws / 2))
    assert np.corrcoef(found.exact_BC.flatten(), expected_BC.flatten())[0, 1] > 0.98


def test_the_linearised_estimator_finds_the_trace():
    """E‖ε‖² = tr(A″ ΦΣΦᵀ A″) for a narrow posterior. Of 256 pairs ‖ε‖² has a standard error of up to √2/16."""
    inputs_BD = normal(30, 5)
    model = nn.Linear(5, 3, bias=False).double()
    learnt = posterior_of(IVON(model.parameters(), lr=0.1, ess=2000.0))
    (sigma,) = learnt.standard_deviations()
    posterior = GaussianPosterior(model.weight.detach().flatten(), sigma.double().flatten().square().diag())
    mean_BC, covariance_BCC = predictive(design(inputs_BD, 3), posterior)
    curvature_BCC = CATEGORICAL.variance(mean_BC)
    expected_B = (curvature_BCC @ covariance_BCC @ curvature_BCC).diagonal(dim1=1, dim2=2).sum(1)

    options = EstimateOptions(seed=3, epoch=1, num_mc_samples=512, estimator="linearised")
    found = estimate(model, learnt, inputs_BD, options)

    torch.testing.assert_close(found.linearised_sq_B, expected_B, rtol=0.35, atol=0)
    assert found.linearised_sq_B.mean().item() == pytest.approx(expected_B.mean().item(), rel=0.1)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_wrong_arguments_are_named():
    features_BCP, labels_BC = design(normal(3, 2)), normal(3, 1)
    with pytest.raises(ValueError, match=r"features_BCP is torch.float32; .* want torch.float64"):
        Problem(BERNOULLI, features_BCP.float(), labels_BC, 1.0)
    with pytest.raises(ValueError, match=r"labels_BC has shape \(2, 1\); features_BCP \(3, 1, 2\) wants \(3, 1\)"):
        Problem(BERNOULLI, features_BCP, labels_BC[:2], 1.0)
    with pytest.raises(ValueError, match=r"prior_precision 0.0 must be greater than 0"):
        Problem(BERNOULLI, features_BCP, labels_BC, 0.0)
    with pytest.raises(ValueError, match=r"covariance_PP has shape \(2, 3\); mean_P \(2,\) wants \(2, 2\)"):
        GaussianPosterior(normal(2), normal(2, 3))
    problem, posterior = Problem(BERNOULLI, features_BCP, labels_BC, 1.0), GaussianPosterior(normal(2), wide(2))
    for rho in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"rho {rho} must be greater than 0 and at most 1"):
            von_step(problem, posterior, rho)
