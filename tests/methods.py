"""Every method of training, in settings that a small network learns with: what tests of all methods run over."""

from __future__ import annotations

from typing import get_args

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

METHODS: dict[str, MethodSpec] = {
    "sgd": SGDSpec(lr=0.1),
    "sgd nesterov": SGDSpec(lr=0.1, nesterov=True),
    "adamw": AdamWSpec(lr=0.01),
    "sam": SAMSpec(lr=0.1),
    "sam without momentum": SAMSpec(lr=0.1, momentum=0.0),
    "asam": ASAMSpec(lr=0.1, nesterov=True),
    "looksam": LookSAMSpec(lr=0.1, k=5),
    "msam": MSAMSpec(lr=0.1, rho=0.1),
    "bsam": BSAMSpec(lr=0.1, ess=1000),
    "ivon": IVONSpec(lr=0.1, beta2=0.99),
    "ivon, three samples": IVONSpec(lr=0.1, beta2=0.99, num_mc_samples=3),
    "ivon, antithetic": IVONSpec(lr=0.1, beta2=0.99, num_mc_samples=2, antithetic=True),
    "ivon, gradsq": IVONSpec(lr=0.1, beta2=0.99, hess_approx="gradsq"),
    "ivon, fixed hessian": IVONSpec(lr=0.1, fixed_hessian=True),
}

KINDS = {spec.model_fields["kind"].default for spec in get_args(get_args(MethodSpec)[0])}
"""The kinds that MethodSpec knows: each must have a row above."""

assert {method.kind for method in METHODS.values()} == KINDS, "each kind of MethodSpec needs a row in METHODS"
