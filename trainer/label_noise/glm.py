"""The exact cases of label noise: generalised linear models with a Gaussian posterior (arXiv 2502.07273, Sec. 3, A.1).

A GLM's loss is A(f) - y·f with log-partition A and logits f = Φθ. With q = N(m, Σ) the logits are Gaussian too, so
every expectation over the P weights is one over the C logits of an example, and E_q[∇loss] = Φᵀ(E_q[A′(f_θ)] - y) is
the gradient at m for labels y + ε, where

    ε = A′(f_m) - E_q[A′(f_θ)]                                                                       (Eq. 10, 13, 16)

Nothing here samples or trains a network: these are the cases against which the estimators are held. Two facts that the
formula has and the word "smoothing" hides: ε doesn't contain y; and in the binary case it has the sign of f_m. A label
that contradicts the model is therefore softened towards it, one that agrees is pushed past 0 or 1.

Letters in names: B examples, C logits of an example, P weights, D inputs, K dimensions and N points of a quadrature.
Everything is float64, and no function changes its arguments. Losses are summed over examples (Eq. 6), not averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

NUM_NODES = 64
"""Nodes of the Gauss-Hermite rule in each dimension, unless said otherwise."""
MAX_POINTS = 2**16
"""Points of a tensor-product rule: memory grows with B · points · C²."""

# ---------------------------------------------------------------------------------------------------------- quadrature


def gauss_hermite(
    function: Callable[[Tensor], Tensor], mean_BC: Tensor, root_BCK: Tensor, num_nodes: int = NUM_NODES
) -> Tensor:
    """E[function(f)] for f ~ N(mean, root rootᵀ), (B, ...), where function maps (B, N, C) to (B, N, ...).

    A tensor product of K one-dimensional rules: num_nodes ** K points. Exact for polynomials of degree
    2·num_nodes - 1. For the sigmoid the largest error over all means, with 64 nodes, by the logit's standard deviation:
    ≤ 1: 3e-14, 2: 1e-10, 3: 2e-7, 4: 6e-6 (for its derivative: 5e-15, 7e-10, 8e-7, 3e-5); with 128 nodes 3: 2e-10,
    4: 4e-8. For the softmax the same, by the deviation of the difference of two logits. exp: 1e-14 relative up to 4.
    """
    num_dimensions = root_BCK.shape[-1]
    if num_nodes < 1 or num_nodes**num_dimensions > MAX_POINTS:
        most = math.floor(MAX_POINTS ** (1 / num_dimensions) + 1e-9)
        raise ValueError(
            f"num_nodes {num_nodes} must be from 1 to {most}: a rule in {num_dimensions} dimensions "
            f"has num_nodes ** {num_dimensions} points, at most {MAX_POINTS}"
        )
    points_NK, weights_N = _tensor_rule(num_nodes, num_dimensions)
    f_BNC = mean_BC[:, None] + torch.einsum("bck,nk->bnc", root_BCK, points_NK)
    return torch.einsum("n,bn...->b...", weights_N, function(f_BNC))


@lru_cache(maxsize=32)
def _tensor_rule(num_nodes: int, num_dimensions: int) -> tuple[Tensor, Tensor]:
    """Points (N, K) and weights (N,) with Σ w g(point) ≈ E[g(e)], e ~ N(0, I_K)."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(num_nodes))
    points_NK = torch.cartesian_prod(*[nodes] * num_dimensions).reshape(-1, num_dimensions)
    products_NK = torch.cartesian_prod(*[weights / weights.sum()] * num_dimensions).reshape(-1, num_dimensions)
    return points_NK, products_NK.prod(dim=1)


def _root(covariance_BCC: Tensor) -> Tensor:
    """R (B, C, C) with R Rᵀ = covariance, which may be singular (an example of zeros has no variance)."""
    eigenvalues_BC, vectors_BCC = torch.linalg.eigh(covariance_BCC)
    return torch.einsum("bck,bk->bck", vectors_BCC, eigenvalues_BC.clamp_min(0).sqrt())


def _root_of_differences(covariance_BCC: Tensor) -> Tensor:
    """R (B, C, C - 1) for logits of which only differences count: noise of the last logit is taken off all of them.

    A(f + c) = A(f) + c for the log-sum-exp, so E[A], E[A′] and E[A″] stay the same and one dimension is saved.
    """
    variances_BC1, last_B11 = covariance_BCC[:, :-1, -1:], covariance_BCC[:, -1:, -1:]
    differences = covariance_BCC[:, :-1, :-1] - variances_BC1 - variances_BC1.mT + last_B11
    root = _root(differences)
    return torch.cat([root, torch.zeros_like(root[:, :1])], dim=1)


# ------------------------------------------------------------------------------------------------------------ families


@dataclass(frozen=True)
class Family:
    """An exponential family in its natural parameter f, by its log-partition function (Eq. 15)."""

    name: str
    log_partition: Callable[[Tensor], Tensor]
    """A: (..., C) to (...)"""
    mean: Callable[[Tensor], Tensor]
    """A′ = E[y | f]: (..., C) to (..., C)"""
    variance: Callable[[Tensor], Tensor]
    """A″ = Cov[y | f]: (..., C) to (..., C, C)"""
    root: Callable[[Tensor], Tensor] = _root
    """R (B, C, K) of the logits' covariance (B, C, C), as far as A and its derivatives depend on it."""


def _softmax_covariance(f: Tensor) -> Tensor:
    p = f.softmax(-1)
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


# With more than one logit, the first three are independent outputs.
BERNOULLI = Family(
    "bernoulli",
    log_partition=lambda f: softplus(f, threshold=40).sum(-1),  # torch's own threshold of 20 is off by 2e-9
    mean=torch.sigmoid,
    variance=lambda f: torch.diag_embed(f.sigmoid() * (-f).sigmoid()),
)
POISSON = Family(
    "poisson",
    log_partition=lambda f: f.exp().sum(-1),
    mean=torch.exp,
    variance=lambda f: torch.diag_embed(f.exp()),
)
GAUSSIAN = Family(
    "gaussian",  # of unit variance
    log_partition=lambda f: f.square().sum(-1) / 2,
    mean=lambda f: f,
    variance=lambda f: torch.diag_embed(torch.ones_like(f)),
)
CATEGORICAL = Family(
    "categorical",
    log_partition=lambda f: f.logsumexp(-1),
    mean=lambda f: f.softmax(-1),
    variance=_softmax_covariance,
    root=_root_of_differences,
)

# -------------------------------------------------------------------------------------------------- problem, posterior


def design(inputs_BD: Tensor, num_outputs: int = 1) -> Tensor:
    """Features Φ = I_C ⊗ xᵀ, (B, C, P = C·D): logits of a linear layer without bias, θ its weight (C, D) row by row."""
    eye_CC = torch.eye(num_outputs, dtype=inputs_BD.dtype)
    return torch.einsum("ce,bd->bced", eye_CC, inputs_BD).flatten(start_dim=2)


@dataclass(frozen=True)
class Problem:
    """Examples, their likelihood, and the quadratic regulariser R(θ) = δ/2 ‖θ‖² (Eq. 6), the prior N(0, I/δ)."""

    family: Family
    features_BCP: Tensor
    labels_BC: Tensor
    """One-hot for the categorical family; y + ε need not be probabilities."""
    prior_precision: float
    """δ > 0"""

    def __post_init__(self) -> None:
        _require_float64(features_BCP=self.features_BCP, labels_BC=self.labels_BC)
        if self.features_BCP.shape[:-1] != self.labels_BC.shape:
            raise ValueError(
                f"labels_BC has shape {tuple(self.labels_BC.shape)}; "
                f"features_BCP {tuple(self.features_BCP.shape)} wants {tuple(self.features_BCP.shape[:-1])}"
            )
        if not self.prior_precision > 0:
            raise ValueError(f"prior_precision {self.prior_precision} must be greater than 0")


@dataclass(frozen=True)
class GaussianPosterior:
    """q = N(m, Σ) over the weights, with a full covariance."""

    mean_P: Tensor
    covariance_PP: Tensor

    def __post_init__(self) -> None:
        _require_float64(mean_P=self.mean_P, covariance_PP=self.covariance_PP)
        if self.covariance_PP.shape != self.mean_P.shape * 2:
            raise ValueError(
                f"covariance_PP has shape {tuple(self.covariance_PP.shape)}; "
                f"mean_P {tuple(self.mean_P.shape)} wants {tuple(self.mean_P.shape * 2)}"
            )


def _require_float64(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float64:
            raise ValueError(f"{name} is {tensor.dtype}; the exact cases want torch.float64")


def predictive(features_BCP: Tensor, posterior: GaussianPosterior) -> tuple[Tensor, Tensor]:
    """Mean Φm (B, C) and covariance ΦΣΦᵀ (B, C, C) of the logits under q (Eq. 12, 19)."""
    spread_BCP = features_BCP @ posterior.covariance_PP
    return features_BCP @ posterior.mean_P, spread_BCP @ features_BCP.mT


def expected(
    function: Callable[[Tensor], Tensor],
    family: Family,
    features_BCP: Tensor,
    posterior: GaussianPosterior,
    num_nodes: int = NUM_NODES,
) -> Tensor:
    """E_q[function(f_θ)], (B, ...), for a `function` of the logits that is the family's A, A′ or A″."""
    mean_BC, covariance_BCC = predictive(features_BCP, posterior)
    return gauss_hermite(function, mean_BC, family.root(covariance_BCC), num_nodes)


# --------------------------------------------------------------------------------------------------------- label noise


def label_noise(
    family: Family, features_BCP: Tensor, posterior: GaussianPosterior, num_nodes: int = NUM_NODES
) -> Tensor:
    """ε = A′(f_m) - E_q[A′(f_θ)], (B, C) (Eq. 10, 13, 16). Second order in the spread of q; sums to 0 over classes."""
    at_mean_BC = family.mean(features_BCP @ posterior.mean_P)
    return at_mean_BC - expected(family.mean, family, features_BCP, posterior, num_nodes)


def linearised_label_noise(family: Family, features_BCP: Tensor, mean_P: Tensor, displacement_P: Tensor) -> Tensor:
    """ε ≈ A″(f_m) Φ Σ^½e, (B, C), of one draw: displacement = Σ^½e, e ~ N(0, I) (Eq. 14; Eq. 20 for a linear model).

    It is A′(f_m) - A′(f_θ) at θ = m - Σ^½e to first order. Its mean over draws is 0, not Eq. 16: what it tells is the
    size of the noise, E‖ε‖² = tr(A″ ΦΣΦᵀ A″).
    """
    curvature_BCC = family.variance(features_BCP @ mean_P)
    return (curvature_BCC @ (features_BCP @ displacement_P)[..., None])[..., 0]


def with_label_noise(problem: Problem, posterior: GaussianPosterior, num_nodes: int = NUM_NODES) -> Problem:
    """The same problem with labels y + ε."""
    epsilon_BC = label_noise(problem.family, problem.features_BCP, posterior, num_nodes)
    return replace(problem, labels_BC=problem.labels_BC + epsilon_BC)


# ------------------------------------------------------------------------------------------- empirical risk, objective


def risk(problem: Problem, theta_P: Tensor) -> Tensor:
    """Σ_i [A(f_i) - y_i·f_i] + δ/2 ‖θ‖², a scalar (Eq. 6 with the loss of Eq. 8, 15)."""
    f_BC = problem.features_BCP @ theta_P
    losses_B = problem.family.log_partition(f_BC) - (problem.labels_BC * f_BC).sum(-1)
    return losses_B.sum() + problem.prior_precision / 2 * theta_P.square().sum()


def risk_gradient(problem: Problem, theta_P: Tensor) -> Tensor:
    """Σ_i Φ_iᵀ(A′(f_i) - y_i) + δθ, (P,) (the bracket of Eq. 9)."""
    return _gradient(problem, problem.family.mean(problem.features_BCP @ theta_P), theta_P)


def risk_hessian(problem: Problem, theta_P: Tensor) -> Tensor:
    """Σ_i Φ_iᵀ A″(f_i) Φ_i + δI, (P, P)."""
    return _hessian(problem, problem.family.variance(problem.features_BCP @ theta_P))


def variational_objective(problem: Problem, posterior: GaussianPosterior, num_nodes: int = NUM_NODES) -> Tensor:
    """Σ_i E_q[loss_i] + KL(q ‖ N(0, I/δ)), a scalar (Eq. 7). Autograd goes through to m and Σ."""
    f_BC = problem.features_BCP @ posterior.mean_P
    log_partition_B = expected(problem.family.log_partition, problem.family, problem.features_BCP, posterior, num_nodes)
    losses_B = log_partition_B - (problem.labels_BC * f_BC).sum(-1)
    delta, num_weights = problem.prior_precision, len(posterior.mean_P)
    second_moment = posterior.covariance_PP.trace() + posterior.mean_P.square().sum()
    kl = (delta * second_moment - num_weights - num_weights * math.log(delta) - posterior.covariance_PP.logdet()) / 2
    return losses_B.sum() + kl


def variational_gradient(problem: Problem, posterior: GaussianPosterior, num_nodes: int = NUM_NODES) -> Tensor:
    """The objective's gradient in m: E_q[∇risk] = Σ_i Φ_iᵀ(E_q[A′(f_i)] - y_i) + δm, (P,) (Eq. 11)."""
    mean_BC = expected(problem.family.mean, problem.family, problem.features_BCP, posterior, num_nodes)
    return _gradient(problem, mean_BC, posterior.mean_P)


def variational_hessian(problem: Problem, posterior: GaussianPosterior, num_nodes: int = NUM_NODES) -> Tensor:
    """E_q[∇²risk] = Σ_i Φ_iᵀ E_q[A″(f_i)] Φ_i + δI, (P, P); twice the gradient in Σ of the objective without log|Σ|."""
    return _hessian(
        problem, expected(problem.family.variance, problem.family, problem.features_BCP, posterior, num_nodes)
    )


def _gradient(problem: Problem, mean_BC: Tensor, theta_P: Tensor) -> Tensor:
    residuals_BC = mean_BC - problem.labels_BC
    return torch.einsum("bcp,bc->p", problem.features_BCP, residuals_BC) + problem.prior_precision * theta_P


def _hessian(problem: Problem, curvature_BCC: Tensor) -> Tensor:
    features_BCP = problem.features_BCP
    prior_PP = problem.prior_precision * torch.eye(features_BCP.shape[-1], dtype=features_BCP.dtype)
    return torch.einsum("bcp,bcd,bdq->pq", features_BCP, curvature_BCC, features_BCP) + prior_PP


# --------------------------------------------------------------------------------------------------------------- steps


def gradient_step(problem: Problem, theta_P: Tensor, lr: float) -> Tensor:
    """θ ← θ - lr·∇risk(θ) (Eq. 9)."""
    return theta_P - lr * risk_gradient(problem, theta_P)


def variational_gradient_step(
    problem: Problem, posterior: GaussianPosterior, lr: float, num_nodes: int = NUM_NODES
) -> GaussianPosterior:
    """m ← m - lr·∇_m objective with Σ kept (Theorem 1, where Σ = I): `gradient_step` on labels y + ε."""
    mean_P = posterior.mean_P - lr * variational_gradient(problem, posterior, num_nodes)
    return replace(posterior, mean_P=mean_P)


def newton_step(problem: Problem, theta_P: Tensor) -> Tensor:
    """θ ← θ - [∇²risk(θ)]⁻¹ ∇risk(θ) (Eq. 17)."""
    change_P: Tensor = torch.linalg.solve(risk_hessian(problem, theta_P), risk_gradient(problem, theta_P))
    return theta_P - change_P


def von_step(
    problem: Problem, posterior: GaussianPosterior, rho: float, num_nodes: int = NUM_NODES
) -> GaussianPosterior:
    """Variational Online Newton with Σ = S⁻¹ and 0 < ρ ≤ 1 (Eq. 18).

    S ← (1 - ρ)S + ρ E_q[∇²risk],    m ← m - ρ S⁻¹ E_q[∇risk] with the new S.
    At ρ = 1 it is Newton with gradient and Hessian in expectation: the former's label noise is Eq. 16, the latter's
    noise is not one of labels.
    """
    if not 0 < rho <= 1:
        raise ValueError(f"rho {rho} must be greater than 0 and at most 1")
    old_PP = torch.linalg.inv(posterior.covariance_PP)
    precision_PP = (1 - rho) * old_PP + rho * variational_hessian(problem, posterior, num_nodes)
    covariance_PP = torch.linalg.inv(precision_PP)
    mean_P = posterior.mean_P - rho * covariance_PP @ variational_gradient(problem, posterior, num_nodes)
    return GaussianPosterior(mean_P, (covariance_PP + covariance_PP.mT) / 2)


def newton_surrogate(problem: Problem, centre_P: Tensor, theta_P: Tensor) -> Tensor:
    """The quadratic whose minimiser in θ is Newton's step from `centre`, a scalar (Eq. 23).

    Σ_i [(A′(f_i(c)) - y_i)·f_i(θ) + ½ (f_i(θ) - f_i(c))ᵀ A″(f_i(c)) (f_i(θ) - f_i(c))] + R(θ)
    """
    curvature_BCC = problem.family.variance(problem.features_BCP @ centre_P)
    return _surrogate(problem, centre_P, curvature_BCC, theta_P)


def von_surrogate(
    problem: Problem, posterior: GaussianPosterior, theta_P: Tensor, num_nodes: int = NUM_NODES
) -> Tensor:
    """Newton's surrogate around m with labels y + ε and curvature E_q[A″], a scalar (Eq. 25).

    VON is inference with it as -log likelihood: q_new ∝ q^(1-ρ) exp(-surrogate)^ρ (Eq. 24, the prior being R's).
    """
    curvature_BCC = expected(problem.family.variance, problem.family, problem.features_BCP, posterior, num_nodes)
    return _surrogate(with_label_noise(problem, posterior, num_nodes), posterior.mean_P, curvature_BCC, theta_P)


def _surrogate(problem: Problem, centre_P: Tensor, curvature_BCC: Tensor, theta_P: Tensor) -> Tensor:
    centre_BC, f_BC = problem.features_BCP @ centre_P, problem.features_BCP @ theta_P
    residuals_BC = problem.family.mean(centre_BC) - problem.labels_BC
    change_BC = f_BC - centre_BC
    quadratic = torch.einsum("bc,bcd,bd->", change_BC, curvature_BCC, change_BC)
    return (residuals_BC * f_BC).sum() + quadratic / 2 + problem.prior_precision / 2 * theta_P.square().sum()
