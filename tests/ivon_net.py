"""A small network with BatchNorm for the tests of IVON as an optimizer, and what they do with it."""

import torch
import torch.nn.functional as F
from torch import nn


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))


IMAGES = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 5


def take_steps(model, optimizer, num_steps):
    for _ in range(num_steps):
        for _ in range(optimizer.mc_samples):
            optimizer.zero_grad()
            with optimizer.sampled_params(train=True):
                F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()


def snapshot(model, optimizer):
    states = [optimizer.state[p][name] for p in model.parameters() for name in ("step", "momentum", "hess")]
    return [tensor.detach().clone() for tensor in (*model.state_dict().values(), *states)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
