"""Methods of training: pure update rules and thin torch optimizers on them."""

from __future__ import annotations

import math
from typing import assert_never

from torch import nn
from torch.optim import SGD, Optimizer

from trainer.method_spec import IVONSpec, MethodSpec, SGDSpec
from trainer.optim.ivon import IVON


def build_optimizer(method: MethodSpec, model: nn.Module, *, num_examples: int, seed: int) -> Optimizer:
    """The optimizer of a method over all parameters of a model. Every rank must give the same `seed`.

    `num_examples` is the size of the training split, the effective sample size unless the method sets its own.
    """
    match method:
        case IVONSpec():
            return IVON(
                model.parameters(),
                lr=method.lr,
                ess=num_examples if method.ess is None else method.ess,
                hess_init=method.hess_init,
                beta1=method.beta1,
                beta2=method.beta2,
                weight_decay=method.weight_decay,
                mc_samples=method.num_mc_samples,
                clip_radius=math.inf if method.clip_radius is None else method.clip_radius,
                rescale_lr=method.rescale_lr,
                antithetic=method.antithetic,
                seed=seed,
            )
        case SGDSpec():
            return SGD(
                model.parameters(),
                lr=method.lr,
                momentum=method.momentum,
                weight_decay=method.weight_decay,
                nesterov=method.nesterov,
            )
        case _:
            assert_never(method)
