"""What the tests of SAM and its relatives work on: settings of each, a small network with BatchNorm, and one step."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import vector_to_parameters

from trainer.method_spec import ASAMSpec, BSAMSpec, LookSAMSpec, MSAMSpec, SAMSpec
from trainer.optim import build_optimizer
from trainer.steps import Learner, step_for
from trainer.target_spec import HardTarget
from trainer.targets import build_target

IMAGES_BCHW = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS_B = torch.arange(12) % 5
WEIGHTS_B = torch.full((12,), 1 / 12, dtype=torch.float64)

SAM_ = SAMSpec(lr=0.2, rho=0.3, weight_decay=0.01)
METHODS = {
    "sam": SAM_,
    "sam, nesterov": SAM_.model_copy(update={"nesterov": True}),
    "sam, rho 0": SAM_.model_copy(update={"rho": 0.0}),
    "asam": ASAMSpec(lr=0.2, rho=0.5, weight_decay=0.01),
    "looksam": LookSAMSpec(lr=0.2, rho=0.3, k=3, alpha=0.4, weight_decay=0.01),
    "looksam, always": LookSAMSpec(lr=0.2, rho=0.3, k=1),
    "msam": MSAMSpec(lr=0.2, rho=0.3, weight_decay=0.01),
    "bsam": BSAMSpec(lr=0.2, ess=50, rho=0.2, beta2=0.9, damping=0.05, precision_init=0.7, weight_decay=0.01),
}
NUM_PASSES = {"sam": 2, "asam": 2, "looksam": 2, "msam": 1, "bsam": 2}
"""Of a first step."""


def small_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5)]
    return nn.Sequential(*layers).double()


def learner_for(method, model=None, autocast=nullcontext, more=()):
    model = model or small_net()
    holder = nn.ParameterList([*model.parameters(), *more]) if more else model
    optimizer = build_optimizer(method, holder, num_examples=50, seed=3)
    return Learner(model, optimizer, build_target(HardTarget(), 5), autocast)


def step(method, learner):
    return step_for(method)(learner, IMAGES_BCHW.to(learner.model[0].weight.dtype), LABELS_B, WEIGHTS_B)


def gradient_at(weights):
    """Of the loss on the whole batch, by a network of its own."""
    twin = small_net()
    vector_to_parameters(weights, twin.parameters())
    loss = F.cross_entropy(twin(IMAGES_BCHW), LABELS_B)
    return one_vector(torch.autograd.grad(loss, list(twin.parameters())))


def one_vector(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def weights_of(model):
    return one_vector(model.parameters()).detach().clone()


def tensors_of(learner):
    states = [t for state in learner.optimizer.state_dict()["state"].values() for t in state.values()]
    return [t.detach().clone() for t in (*learner.model.parameters(), *states)]


def statistics_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
