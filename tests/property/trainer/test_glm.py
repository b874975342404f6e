"""The paper's theorems on random problems: a variational step is a step on labels y + ε, and what ε is like.

What is claimed equal is worked out in two ways: by autograd through the objective that is minimised, or by a grid over
the weights that knows nothing of logits being Gaussian.
"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import hessian, jacobian

from trainer.label_noise.glm import (
    BERNOULLI,
    CATEGORICAL,
    GAUSSIAN,
    POISSON,
    GaussianPosterior,
    Problem,
    design,
    gradient_step,
    label_noise,
    newton_step,
    newton_surrogate,
    predictive,
    risk,
    risk_gradient,
    risk_hessian,
    variational_gradient,
    variational_gradient_step,
    variational_hessian,
    variational_objective,
    von_step,
    von_surrogate,
    with_label_noise,
)

FAMILIES = pytest.mark.parametrize("family", [BERNOULLI, POISSON, GAUSSIAN, CATEGORICAL], ids=lambda f: f.name)
SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=15, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are small: on a busy machine threads wait for one another longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(found, expected, atol=1e-10):
    """To 1e-10; to float64's rounding where a Poisson's numbers run into thousands."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=atol)


def random_problem(family, seed, *, spread=1.5, num_inputs=None):
    """A few examples and a q with a full covariance; no difference of logits has a deviation of more than `spread`.

    Logits at the mean are within ±4: beyond, a Poisson's numbers leave no 1e-10 to compare.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def size(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    num_outputs = size(2, 3) if family is CATEGORICAL else 1
    inputs_BD = normal(size(1, 8), num_inputs or size(1, 4))
    num_weights = num_outputs * inputs_BD.shape[1]
    root = normal(num_weights, num_weights)
    posterior = GaussianPosterior(normal(num_weights), root @ root.T + 0.2 * torch.eye(num_weights))
    mean_BC, covariance_BCC = predictive(design(inputs_BD, num_outputs), posterior)
    variances = covariance_BCC.diagonal(dim1=1, dim2=2)
    widest = (variances if num_outputs == 1 else 4 * variances).max().sqrt()
    posterior = GaussianPosterior(
        posterior.mean_P * (4 / mean_BC.abs().max()).clamp_max(1), posterior.covariance_PP * (spread / widest) ** 2
    )
    f_BC = design(inputs_BD, num_outputs) @ normal(num_weights)
    labels_BC = {
        "bernoulli": lambda: torch.bernoulli(f_BC.sigmoid(), generator=generator),
        "poisson": lambda: torch.poisson(f_BC.clamp_max(3).exp(), generator=generator),
        "gaussian": lambda: f_BC + normal(*f_BC.shape),
        "categorical": lambda: torch.eye(num_outputs, dtype=f_BC.dtype)[
            f_BC.softmax(1).multinomial(1, generator=generator)[:, 0]
        ],
    }[family.name]()
    return Problem(family, design(inputs_BD, num_outputs), labels_BC, prior_precision=0.5), posterior


# ----------------------------------------------------------------------------------------------- gradient descent (3.1)


@FAMILIES
@given(seed=SEEDS, spread=st.floats(0.01, 3), lr=st.floats(1e-3, 1))
@few
def test_a_variational_step_is_a_gradient_step_on_noisy_labels(family, seed, spread, lr):
    """Theorem 1, for each family and any covariance; the derivative of the objective is autograd's."""
    problem, posterior = random_problem(family, seed, spread=spread)
    mean_P = posterior.mean_P

    def objective(m_P):
        return variational_objective(problem, replace(posterior, mean_P=m_P))

    on_noisy_labels_P = gradient_step(with_label_noise(problem, posterior), mean_P, lr)
    close(mean_P - lr * jacobian(objective, mean_P), on_noisy_labels_P)
    stepped = variational_gradient_step(problem, posterior, lr)
    close(stepped.mean_P, on_noisy_labels_P)
    assert torch.equal(stepped.covariance_PP, posterior.covariance_PP)


@FAMILIES
@given(seed=SEEDS)
@few
def test_risk_gradient_and_hessian_are_the_derivatives_of_the_risk(family, seed):
    problem, posterior = random_problem(family, seed)
    close(risk_gradient(problem, posterior.mean_P), jacobian(partial(risk, problem), posterior.mean_P))
    close(risk_hessian(problem, posterior.mean_P), hessian(partial(risk, problem), posterior.mean_P))


def average_over_weights(problem, posterior):
    """E_q of the risk's gradient and Hessian by a trapezoidal rule over the weights: no logits, no Gauss-Hermite.

    Its error for these analytic integrands, and the tails that it leaves out, are below 1e-13.
    """
    step, num_weights = 0.4, len(posterior.mean_P)
    axis = step * torch.arange(-21, 22, dtype=torch.float64)
    grid_GP = torch.cartesian_prod(*[axis] * num_weights).reshape(-1, num_weights)
    weights_G = torch.exp(-grid_GP.square().sum(1) / 2) * (step / math.sqrt(2 * math.pi)) ** num_weights
    theta_GP = posterior.mean_P + grid_GP @ torch.linalg.cholesky(posterior.covariance_PP).T
    f_GBC = torch.einsum("bcp,gp->gbc", problem.features_BCP, theta_GP)
    mean_BC = torch.einsum("g,gbc->bc", weights_G, problem.family.mean(f_GBC))
    curvature_BCC = torch.einsum("g,gbcd->bcd", weights_G, problem.family.variance(f_GBC))
    features_BCP, delta = problem.features_BCP, problem.prior_precision
    gradient_P = torch.einsum("bcp,bc->p", features_BCP, mean_BC - problem.labels_BC) + delta * posterior.mean_P
    hessian_PP = torch.einsum("bcp,bcd,bdq->pq", features_BCP, curvature_BCC, features_BCP)
    return gradient_P, hessian_PP + delta * torch.eye(num_weights)


@FAMILIES
@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_an_expectation_over_logits_is_one_over_weights(family, seed):
    """Eq. 11, 12 and 19: the Gaussian of the logits stands for that of the weights."""
    problem, posterior = random_problem(family, seed, num_inputs=1 if family is CATEGORICAL else 2)
    gradient_P, hessian_PP = average_over_weights(problem, posterior)
    close(variational_gradient(problem, posterior), gradient_P)
    close(risk_gradient(with_label_noise(problem, posterior), posterior.mean_P), gradient_P)
    close(variational_hessian(problem, posterior), hessian_PP)


# ---------------------------------------------------------------------------------------------------- Newton, VON (3.3)


@FAMILIES
@given(seed=SEEDS)
@few
def test_von_at_rho_1_is_newton_in_expectation(family, seed):
    """Its step is Newton's on m -> E_q[risk(θ)], whose gradient and Hessian are the expected ones."""
    problem, posterior = random_problem(family, seed)

    def smoothed_risk(m_P):  # the KL's derivatives in m are those of the regulariser
        return variational_objective(problem, replace(posterior, mean_P=m_P))

    gradient_P, hessian_PP = jacobian(smoothed_risk, posterior.mean_P), hessian(smoothed_risk, posterior.mean_P)
    stepped = von_step(problem, posterior, rho=1.0)
    close(stepped.mean_P, posterior.mean_P - torch.linalg.solve(hessian_PP, gradient_P))
    close(stepped.covariance_PP, torch.linalg.inv(hessian_PP))


@FAMILIES
@given(seed=SEEDS)
@few
def test_von_becomes_newton_as_the_posterior_narrows(family, seed):
    problem, posterior = random_problem(family, seed, spread=1e-7)
    close(von_step(problem, posterior, rho=1.0).mean_P, newton_step(problem, posterior.mean_P), atol=1e-9)


@FAMILIES
@given(seed=SEEDS, rho=st.floats(0.01, 1))
@few
def test_von_is_inference_on_its_surrogate(family, seed, rho):
    """Eq. 24: -log q_new = (1-ρ)(-log q) + ρ·surrogate, a quadratic whose minimum and curvature are q_new's."""
    problem, posterior = random_problem(family, seed)
    old_PP = torch.linalg.inv(posterior.covariance_PP)

    def negative_log(theta_P):
        away_P = theta_P - posterior.mean_P
        return (1 - rho) * (away_P @ old_PP @ away_P) / 2 + rho * von_surrogate(problem, posterior, theta_P)

    stepped = von_step(problem, posterior, rho)
    precision_PP = hessian(negative_log, posterior.mean_P)
    close(stepped.covariance_PP, torch.linalg.inv(precision_PP), atol=1e-9)
    mean_P = posterior.mean_P - torch.linalg.solve(precision_PP, jacobian(negative_log, posterior.mean_P))
    close(stepped.mean_P, mean_P, atol=1e-9)


@FAMILIES
@given(seed=SEEDS)
@few
def test_surrogates_are_minimised_by_their_steps(family, seed):
    """Eq. 23 and 25; and VON's surrogate has at m the slope of the risk with labels y + ε."""
    problem, posterior = random_problem(family, seed)
    mean_P = posterior.mean_P

    def slope_of_newton(theta_P):
        return jacobian(partial(newton_surrogate, problem, mean_P), theta_P)

    def slope_of_von(theta_P):
        return jacobian(partial(von_surrogate, problem, posterior), theta_P)

    zero_P = torch.zeros_like(mean_P)
    close(slope_of_newton(newton_step(problem, mean_P)), zero_P, atol=1e-9)
    close(slope_of_von(von_step(problem, posterior, rho=1.0).mean_P), zero_P, atol=1e-9)
    close(slope_of_newton(mean_P), risk_gradient(problem, mean_P))
    close(slope_of_von(mean_P), risk_gradient(with_label_noise(problem, posterior), mean_P))


@FAMILIES
@given(seed=SEEDS)
@few
def test_von_follows_the_objective_in_the_covariance(family, seed):
    """2 ∇_Σ objective = E_q[∇²risk] - Σ⁻¹: where VON rests, the objective is stationary in Σ as well as in m."""
    problem, posterior = random_problem(family, seed)

    def objective(covariance_PP):
        return variational_objective(problem, replace(posterior, covariance_PP=covariance_PP))

    slope_PP = jacobian(objective, posterior.covariance_PP)
    expected_PP = variational_hessian(problem, posterior) - torch.linalg.inv(posterior.covariance_PP)
    torch.testing.assert_close(slope_PP + slope_PP.T, expected_PP, rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------------------------------------------- what ε is like


def noise_at(mean, deviation):
    """ε of logistic regression where the logit has this mean and standard deviation."""
    posterior = GaussianPosterior(
        torch.tensor([mean], dtype=torch.float64), torch.tensor([[deviation**2]], dtype=torch.float64)
    )
    return label_noise(BERNOULLI, torch.ones(1, 1, 1, dtype=torch.float64), posterior).item()


MEANS, DEVIATIONS = st.floats(-30, 30), st.floats(0, 2)


@given(MEANS, DEVIATIONS)
def test_logistic_noise_is_odd_and_has_the_sign_of_the_logit(mean, deviation):
    epsilon = noise_at(mean, deviation)
    assert epsilon == pytest.approx(-noise_at(-mean, deviation), rel=0, abs=1e-14)
    assert epsilon * mean >= -1e-9
    assert noise_at(0.0, deviation) == pytest.approx(0, abs=1e-15)
    assert noise_at(mean, 0.0) == pytest.approx(0, abs=1e-15)


@given(st.floats(0, 30), DEVIATIONS)
def test_logistic_noise_dies_off_exponentially_away_from_the_boundary(mean, deviation):
    assert noise_at(mean, deviation) <= math.exp(-mean + deviation**2 / 2) + 1e-9


@given(st.floats(0, 30), DEVIATIONS, DEVIATIONS)
def test_logistic_noise_grows_with_the_variance(mean, first, second):
    assert noise_at(mean, max(first, second)) >= noise_at(mean, min(first, second)) - 1e-9


@FAMILIES
@given(seed=SEEDS, factor=st.floats(1, 5))
@few
def test_larger_features_have_a_larger_variance(family, seed, factor):
    problem, posterior = random_problem(family, seed)
    mean_BC, covariance_BCC = predictive(problem.features_BCP, posterior)
    scaled_mean_BC, scaled_BCC = predictive(factor * problem.features_BCP, posterior)
    close(scaled_mean_BC, factor * mean_BC)
    close(scaled_BCC, factor**2 * covariance_BCC)


@given(seed=SEEDS, distance=st.floats(0, 30))
@few
def test_multiclass_noise_sums_to_zero_and_dies_off_away_from_the_boundary(seed, distance):
    """|ε_c| of a loser c is at most E[exp(f_c - f_winner)], and the winner's at most the sum of the others'."""
    problem, posterior = random_problem(CATEGORICAL, seed)
    scale = 1 + distance  # moves the logits' means apart and leaves their covariance
    posterior = replace(posterior, mean_P=scale * posterior.mean_P)
    epsilon_BC = label_noise(CATEGORICAL, problem.features_BCP, posterior)
    close(epsilon_BC.sum(1), torch.zeros(len(epsilon_BC), dtype=torch.float64), atol=1e-14)
    mean_BC, covariance_BCC = predictive(problem.features_BCP, posterior)
    for mean_C, covariance_CC, epsilon_C in zip(mean_BC, covariance_BCC, epsilon_BC, strict=True):
        winner = int(mean_C.argmax())
        variance_C = covariance_CC.diagonal() + covariance_CC[winner, winner] - 2 * covariance_CC[winner]
        bound_C = torch.exp(mean_C - mean_C[winner] + variance_C / 2)
        bound_C[winner] = bound_C.sum() - bound_C[winner]
        assert (epsilon_C.abs() <= bound_C + 1e-9).all()


@given(seed=SEEDS)
@few
def test_no_class_is_special(seed):
    """The quadrature treats the last class apart; ε doesn't show it."""
    problem, posterior = random_problem(CATEGORICAL, seed)
    features_BCP = problem.features_BCP
    order = torch.randperm(features_BCP.shape[1], generator=torch.Generator().manual_seed(seed))
    found_BC = label_noise(CATEGORICAL, features_BCP[:, order], posterior)
    close(found_BC, label_noise(CATEGORICAL, features_BCP, posterior)[:, order], atol=1e-9)


@given(seed=SEEDS)
@few
def test_two_classes_are_logistic_regression_on_the_difference(seed):
    problem, posterior = random_problem(BERNOULLI, seed)
    none_BP = torch.zeros_like(problem.features_BCP)
    both_BC = label_noise(CATEGORICAL, torch.cat([none_BP, problem.features_BCP], dim=1), posterior)
    epsilon_B1 = label_noise(BERNOULLI, problem.features_BCP, posterior)
    close(both_BC, torch.cat([-epsilon_B1, epsilon_B1], dim=1))


@given(seed=SEEDS)
@few
def test_closed_forms(seed):
    """Poisson: E[exp f] is a lognormal's mean. Gaussian: A′ is linear and there is no label noise."""
    problem, posterior = random_problem(POISSON, seed)
    mean_BC, covariance_BCC = predictive(problem.features_BCP, posterior)
    expected_BC = mean_BC.exp() - torch.exp(mean_BC + covariance_BCC[..., 0] / 2)
    close(label_noise(POISSON, problem.features_BCP, posterior), expected_BC)
    close(label_noise(GAUSSIAN, problem.features_BCP, posterior), torch.zeros_like(mean_BC), atol=1e-13)
