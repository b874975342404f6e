"""MethodSpec: how a job trains, one model for each method. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_pipeline.spec import Spec


class IVONSpec(Spec):
    """IVON (Shen et al. 2024): a Gaussian posterior over the weights, learned at the cost of Adam."""

    kind: Literal["ivon"] = "ivon"
    lr: float = Field(default=0.2, gt=0)
    """Learning rate. The authors' settings: 0.2 for CIFAR, 2.5 for ImageNet at batch 1024."""
    ess: float | None = Field(default=None, gt=0)
    """Effective sample size λ; unset: the number of training examples."""
    hess_init: float = Field(default=0.5, gt=0)
    """Initial diagonal Hessian h₀."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of the gradient."""
    beta2: float = Field(default=0.99999, ge=0, lt=1)
    """Momentum of the Hessian; for short trainings about 1 - 1/(number of steps)."""
    weight_decay: float = Field(default=2e-4, ge=0)
    """Weight decay δ: the prior precision over λ."""
    num_mc_samples: int = Field(default=1, ge=1, le=64)
    """Weight samples a step, each with its own forward and backward pass."""
    antithetic: bool = False
    """Samples come in pairs m ± σe; `num_mc_samples` must then be even."""
    clip_radius: float | None = Field(default=None, gt=0)
    """Each element of the preconditioned update is clipped to ± this; unset: no clipping."""
    hess_approx: Literal["price", "gradsq"] = "price"
    """How a sample estimates the Hessian: `price`, λ(h+δ)·ε⊙ĝ (reparameterisation), or `gradsq`, λ·ĝ²."""
    fixed_hessian: bool = False
    """Leave the Hessian at h₀: the posterior's width does not learn (the paper's Fig. 6)."""
    noise: Literal["shared", "per_rank"] = "shared"
    """`shared`: all ranks draw the same weights, and results do not depend on their number. `per_rank`: each draws its
    own, so that R ranks give R MC samples a step for twice the traffic."""
    rescale_lr: bool = True
    """Multiply the learning rate by h₀ + δ, so that it is comparable to SGD's."""

    @model_validator(mode="after")
    def _antithetic_pairs(self) -> Self:
        if self.antithetic and self.num_mc_samples % 2:
            raise ValueError(f"num_mc_samples {self.num_mc_samples} is odd; with antithetic: true it must be even")
        return self


class _MomentumSGDSpec(Spec):
    """What all methods over SGD with momentum share."""

    kind: str
    lr: float = Field(default=0.1, gt=0)
    """Learning rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 weight decay."""
    nesterov: bool = False
    """Nesterov's momentum; `momentum` must then be above 0."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("momentum 0 must be above 0 with nesterov: true")
        return self


class SGDSpec(_MomentumSGDSpec):
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    kind: Literal["sgd"] = "sgd"


class AdamWSpec(Spec):
    """AdamW (Loshchilov & Hutter 2019), torch's fused one (torch.optim.AdamW)."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of the gradient."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Momentum of the squared gradient."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradient."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Decoupled weight decay."""


class SAMSpec(_MomentumSGDSpec):
    """SAM, sharpness-aware minimization (Foret et al. 2021), over SGD: two forward and backward passes a step.

    On several ranks each perturbs the weights along its own gradient (m-SAM).
    """

    kind: Literal["sam"] = "sam"
    rho: float = Field(default=0.05, ge=0)
    """Length ρ of the perturbation. The paper on label noise tries 0, 0.05, 0.1, 0.15, 0.2 and 0.5."""


class ASAMSpec(_MomentumSGDSpec):
    """ASAM, adaptive SAM (Kwon et al. 2021), over SGD: the perturbation of a weight grows with the weight.

    On several ranks each perturbs the weights along its own gradient, as in SAM.
    """

    kind: Literal["asam"] = "asam"
    rho: float = Field(default=0.5, ge=0)
    """Length ρ of the perturbation relative to the weights: about ten times SAM's."""


class LookSAMSpec(_MomentumSGDSpec):
    """LookSAM (Liu et al. 2022), over SGD: SAM in each k-th step, whose correction the steps in between use again."""

    kind: Literal["looksam"] = "looksam"
    rho: float = Field(default=0.05, ge=0)
    """Length ρ of the perturbation."""
    k: int = Field(default=5, ge=1)
    """Each k-th step has SAM's second pass: 1 + 1/k passes a step on average."""
    alpha: float = Field(default=0.2, ge=0)
    """Weight α of the correction in the steps in between, relative to the gradient."""


class MSAMSpec(_MomentumSGDSpec):
    """MSAM, Momentum-SAM (Becker et al. 2024), over SGD: perturbs along the momentum, with no extra pass."""

    kind: Literal["msam"] = "msam"
    momentum: float = Field(default=0.9, gt=0, lt=1)
    """Momentum, along which the weights are perturbed."""
    rho: float = Field(default=0.3, ge=0)
    """Length ρ of the perturbation."""


class BSAMSpec(Spec):
    """bSAM, Bayesian SAM (Möllenhoff & Khan 2023): SAM that learns a Gaussian posterior; two passes a step."""

    kind: Literal["bsam"] = "bsam"
    lr: float = Field(default=0.5, gt=0)
    """Learning rate. The authors' settings for CIFAR are the defaults here."""
    ess: float | None = Field(default=None, gt=0)
    """Effective sample size λ; unset: the number of training examples."""
    rho: float = Field(default=0.01, ge=0)
    """Perturbation ρ: the second pass is at w + ρg/s."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of the gradient."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Momentum of the precision s."""
    weight_decay: float = Field(default=2e-4, ge=0)
    """Weight decay δ: the prior precision over λ."""
    damping: float = Field(default=0.1, ge=0)
    """Added to the precision's estimate: keeps the posterior from widening without bound."""
    precision_init: float = Field(default=1.0, gt=0)
    """Initial precision s; the posterior's variance is 1/(λs)."""


MethodSpec = Annotated[
    IVONSpec | SGDSpec | AdamWSpec | SAMSpec | ASAMSpec | LookSAMSpec | MSAMSpec | BSAMSpec, Field(discriminator="kind")
]
