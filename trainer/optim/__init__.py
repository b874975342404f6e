"""Methods of training: pure update rules and thin torch optimizers on them."""

from __future__ import annotations

import math
from typing import TypedDict, assert_never

from torch import nn
from torch.optim import Optimizer

from trainer.method_spec import (
    AdamWSpec,
    ASAMSpec,
    BSAMSpec,
    IVONSpec,
    LookSAMSpec,
    MethodSpec,
    MSAMSpec,
    SAMSpec,
    SGDSpec,
)
from trainer.optim.bsam import BSAM
from trainer.optim.ivon import IVON
from trainer.optim.looksam import LookSAM
from trainer.optim.msam import MSAM
from trainer.optim.sam import ASAM, SAM
from trainer.optim.skipping import SkippingOptimizer
from trainer.optim.uncompiled import SGD, AdamW


def build_optimizer(method: MethodSpec, model: nn.Module, *, num_examples: int, seed: int) -> Optimizer:
    """The optimizer of a method over all parameters of a model. Every rank must give the same `seed`.

    `num_examples` is the size of the training split, the effective sample size unless the method sets its own.
    """
    parameters = list(model.parameters())
    optimizer: Optimizer
    match method:
        case IVONSpec():
            optimizer = _ivon(method, parameters, num_examples, seed)
        case BSAMSpec():
            optimizer = _bsam(method, parameters, num_examples, seed)
        case AdamWSpec(lr=lr, eps=eps, weight_decay=decay):
            betas = (method.beta1, method.beta2)
            optimizer = AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay, fused=True)
        case SGDSpec():
            optimizer = SGD(parameters, fused=True, **_sgd_options(method))
        case SAMSpec(rho=rho):
            optimizer = SAM(parameters, rho=rho, **_sgd_options(method))
        case ASAMSpec(rho=rho):
            optimizer = ASAM(parameters, rho=rho, **_sgd_options(method))
        case LookSAMSpec(rho=rho, k=k, alpha=alpha):
            optimizer = LookSAM(parameters, rho=rho, k=k, alpha=alpha, **_sgd_options(method))
        case MSAMSpec(rho=rho):
            optimizer = MSAM(parameters, rho=rho, **_sgd_options(method))
        case _:
            assert_never(method)
    return optimizer


def num_skipped_steps(optimizer: Optimizer) -> int | None:
    """Steps that an optimizer skipped because a gradient was not finite; None for those that don't look."""
    return optimizer.num_skipped_steps if isinstance(optimizer, IVON | SkippingOptimizer) else None


class _SGDOptions(TypedDict):
    lr: float
    momentum: float
    weight_decay: float
    nesterov: bool


def _sgd_options(method: SGDSpec | SAMSpec | ASAMSpec | LookSAMSpec | MSAMSpec) -> _SGDOptions:
    return {
        "lr": method.lr,
        "momentum": method.momentum,
        "weight_decay": method.weight_decay,
        "nesterov": method.nesterov,
    }


def _ivon(method: IVONSpec, parameters: list[nn.Parameter], num_examples: int, seed: int) -> IVON:
    return IVON(
        parameters,
        lr=method.lr,
        ess=num_examples if method.ess is None else method.ess,
        hess_init=method.hess_init,
        beta1=method.beta1,
        beta2=method.beta2,
        weight_decay=method.weight_decay,
        mc_samples=method.num_mc_samples,
        clip_radius=math.inf if method.clip_radius is None else method.clip_radius,
        rescale_lr=method.rescale_lr,
        hess_approx=method.hess_approx,
        sync=method.noise == "per_rank",
        fixed_hessian=method.fixed_hessian,
        antithetic=method.antithetic,
        seed=seed,
    )


def _bsam(method: BSAMSpec, parameters: list[nn.Parameter], num_examples: int, seed: int) -> BSAM:
    return BSAM(
        parameters,
        lr=method.lr,
        ess=num_examples if method.ess is None else method.ess,
        rho=method.rho,
        beta1=method.beta1,
        beta2=method.beta2,
        weight_decay=method.weight_decay,
        damping=method.damping,
        precision_init=method.precision_init,
        seed=seed,
    )
