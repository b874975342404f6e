"""Each method's spec becomes its optimizer."""

import pytest
import torch
from torch import nn

from trainer.method_spec import IVONSpec, SGDSpec
from trainer.optim import build_optimizer
from trainer.optim.ivon import IVON


def test_ivon_gets_all_of_its_spec():
    spec = IVONSpec(lr=0.3, hess_init=0.7, beta1=0.8, beta2=0.99, weight_decay=1e-3, num_mc_samples=4, antithetic=True)
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
        "clip_radius": float("inf"),
        "debias": True,
        "rescale_lr": True,
    }
    assert optimizer.state_dict()["ivon"] == {
        "seed": 5,
        "mc_samples": 4,
        "antithetic": True,
        "num_steps": 0,
        "num_predictions": 0,
        "num_skipped": 0,
        "noise": "torch",
    }


@pytest.mark.parametrize(("ess", "used"), [(None, 1000), (50.0, 50.0)])
def test_ess_is_the_number_of_examples_unless_set(ess, used):
    optimizer = build_optimizer(IVONSpec(ess=ess), nn.Linear(2, 2), num_examples=1000, seed=0)
    assert optimizer.param_groups[0]["ess"] == used


def test_sgd_is_torchs():
    spec = SGDSpec(lr=0.3, momentum=0.8, weight_decay=1e-3, nesterov=True)
    optimizer = build_optimizer(spec, nn.Linear(2, 2), num_examples=1000, seed=0)
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.3, 0.8, 1e-3, True)
