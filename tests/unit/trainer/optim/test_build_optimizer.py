"""Each method's spec becomes its optimizer."""

import pytest
import torch
from torch import nn

from trainer.method_spec import AdamWSpec, ASAMSpec, BSAMSpec, IVONSpec, LookSAMSpec, MSAMSpec, SAMSpec, SGDSpec
from trainer.optim import build_optimizer, uncompiled
from trainer.optim.bsam import BSAM
from trainer.optim.ivon import IVON
from trainer.optim.looksam import LookSAM
from trainer.optim.msam import MSAM
from trainer.optim.sam import ASAM, SAM


def test_ivon_gets_all_of_its_spec():
    rates = {"lr": 0.3, "hess_init": 0.7, "beta1": 0.8, "beta2": 0.99, "weight_decay": 1e-3, "clip_radius": 2.0}
    samples = {"num_mc_samples": 4, "antithetic": True, "noise": "per_rank"}
    spec = IVONSpec(**rates, **samples, hess_approx="gradsq", fixed_hessian=True, rescale_lr=False)
    optimizer = build_optimizer(spec, nn.Linear(2, 2), num_examples=123, seed=5)
    assert isinstance(optimizer, IVON)
    (group,) = optimizer.param_groups
    assert {name: value for name, value in group.items() if name != "params"} == {
        "lr": 0.3,
        "ess": 123,
        "hess_init": 0.7,
        "beta1": 0.8,
        "beta2": 0.99,
        "weight_decay": 1e-3,
        "clip_radius": 2.0,
        "debias": True,
        "rescale_lr": False,
    }
    assert optimizer.sync
    assert optimizer.state_dict()["ivon"] == {
        "seed": 5,
        "mc_samples": 4,
        "antithetic": True,
        "hess_approx": "gradsq",
        "fixed_hessian": True,
        "num_steps": 0,
        "num_predictions": 0,
        "num_skipped": 0,
        "noise": "torch",
    }


@pytest.mark.parametrize(("ess", "used"), [(None, 1000), (50.0, 50.0)])
def test_ess_is_the_number_of_examples_unless_set(ess, used):
    optimizer = build_optimizer(IVONSpec(ess=ess), nn.Linear(2, 2), num_examples=1000, seed=0)
    assert optimizer.param_groups[0]["ess"] == used


SGD_OPTIONS = {"lr": 0.3, "momentum": 0.8, "weight_decay": 1e-3, "nesterov": True}


def assert_options(optimizer, expected):
    (group,) = optimizer.param_groups
    assert {name: group[name] for name in expected} == expected


def test_sgd_is_torchs():
    optimizer = build_optimizer(SGDSpec(**SGD_OPTIONS), nn.Linear(2, 2), num_examples=1000, seed=0)
    assert type(optimizer) is uncompiled.SGD
    assert isinstance(optimizer, torch.optim.SGD)
    assert_options(optimizer, SGD_OPTIONS)


def test_adamw_is_torchs_fused_one():
    spec = AdamWSpec(lr=0.3, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.2)
    optimizer = build_optimizer(spec, nn.Linear(2, 2), num_examples=1000, seed=0)
    assert type(optimizer) is uncompiled.AdamW
    assert isinstance(optimizer, torch.optim.AdamW)
    assert_options(optimizer, {"lr": 0.3, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.2, "fused": True})


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (SAMSpec(rho=0.2, **SGD_OPTIONS), SAM),
        (ASAMSpec(rho=0.2, **SGD_OPTIONS), ASAM),
        (LookSAMSpec(rho=0.2, k=3, alpha=0.6, **SGD_OPTIONS), LookSAM),
        (MSAMSpec(rho=0.2, **SGD_OPTIONS), MSAM),
    ],
    ids=["sam", "asam", "looksam", "msam"],
)
def test_sam_and_its_relatives_get_all_of_their_specs(spec, kind):
    optimizer = build_optimizer(spec, nn.Linear(2, 2), num_examples=1000, seed=0)
    assert type(optimizer) is kind
    assert_options(optimizer, {"rho": 0.2, **SGD_OPTIONS})
    if isinstance(optimizer, LookSAM):
        saved = optimizer.state_dict()["looksam"]
        assert (saved["k"], saved["alpha"]) == (3, 0.6)


@pytest.mark.parametrize(("ess", "used"), [(None, 1000), (50.0, 50.0)])
def test_bsam_gets_all_of_its_spec(ess, used):
    given = {"lr": 0.3, "rho": 0.2, "beta1": 0.8, "beta2": 0.99, "weight_decay": 1e-3, "damping": 0.3}
    spec = BSAMSpec(ess=ess, precision_init=0.4, **given)
    optimizer = build_optimizer(spec, nn.Linear(2, 2), num_examples=1000, seed=5)
    assert type(optimizer) is BSAM
    assert_options(optimizer, {"ess": used, "precision_init": 0.4, **given})
    assert optimizer.state_dict()["bsam"]["seed"] == 5
