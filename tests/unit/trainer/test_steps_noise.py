"""What antithetic IVON's step says of label noise, for nothing."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from trainer.label_noise.estimators import linearised_by_pair, posterior_of
from trainer.method_spec import IVONSpec, SGDSpec
from trainer.optim import build_optimizer
from trainer.optim.noise import DrawKey, Stream
from trainer.steps import Learner, step_for
from trainer.target_spec import HardTarget
from trainer.targets import build_target

IMAGES_BCHW = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS_B = torch.arange(24) % 4
WEIGHTS_B = torch.full((24,), 1 / 24)
SEED = 5


def learner_for(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 4))
    return Learner(
        model, build_optimizer(method, model, num_examples=100, seed=SEED), build_target(HardTarget(), 4), nullcontext
    )


@pytest.mark.parametrize("num_pairs", [1, 3])
def test_a_step_tells_equation_20_at_the_mean_it_started_from(num_pairs):
    """The very draws of the step, by the estimator that takes two passes for each."""
    method = IVONSpec(lr=0.5, hess_init=0.1, num_mc_samples=2 * num_pairs, antithetic=True)
    learner = learner_for(method)
    for step in range(3):
        posterior = posterior_of(learner.optimizer)
        draws = [DrawKey(SEED, Stream.TRAINING, step, i) for i in range(num_pairs)]
        noise = [linearised_by_pair(learner.model, posterior, IMAGES_BCHW, draw) for draw in draws]
        expected_B = torch.stack([epsilon_BC.square().sum(1) for epsilon_BC in noise]).mean(0)
        output = step_for(method)(learner, IMAGES_BCHW, LABELS_B, WEIGHTS_B)
        torch.testing.assert_close(output.epsilon_sq_B, expected_B)
        assert not output.epsilon_sq_B.requires_grad
    assert expected_B.amax() > 1e-3


def test_it_takes_no_pass_more():
    method = IVONSpec(lr=0.5, num_mc_samples=2, antithetic=True)
    learner = learner_for(method)
    passes = []
    learner.model.register_forward_hook(lambda *_: passes.append(1))
    step_for(method)(learner, IMAGES_BCHW, LABELS_B, WEIGHTS_B)
    assert len(passes) == 2


@pytest.mark.parametrize("method", [IVONSpec(), IVONSpec(num_mc_samples=2), SGDSpec()], ids=str)
def test_without_pairs_a_step_tells_nothing(method):
    assert step_for(method)(learner_for(method), IMAGES_BCHW, LABELS_B, WEIGHTS_B).epsilon_sq_B is None
