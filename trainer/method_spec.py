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


class SGDSpec(Spec):
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    kind: Literal["sgd"] = "sgd"
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


MethodSpec = Annotated[IVONSpec | SGDSpec, Field(discriminator="kind")]
