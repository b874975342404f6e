"""What can be said of averaging over ranks with one rank; tests/distributed has more of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from trainer.ddp import without_compiler
from trainer.optim import rank_average
from trainer.optim.ivon import IVON
from trainer.optim.rank_average import Averages


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def small_net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last).to(dtype)


def wrapped(net: nn.Module) -> DistributedDataParallel:
    with without_compiler():
        return DistributedDataParallel(net, gradient_as_bucket_view=True)


def ivon(parameters: Any, **options: Any) -> IVON:
    return IVON(parameters, lr=0.1, ess=100, beta2=0.9, **options)


def train(model: nn.Module, optimizer: IVON, *others: SGD) -> None:
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        images_BCHW = torch.randn(5, 2, 4, 4, generator=generator).to(parameter.dtype)
        for _ in range(optimizer.mc_samples):
            for each in (optimizer, *others):
                each.zero_grad()
            with optimizer.sampled_params(train=True):
                model(images_BCHW).square().sum().backward()
        for each in (optimizer, *others):
            each.step()


def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("mc_samples", [1, 2])
def test_without_a_group_sync_changes_nothing(mc_samples: int) -> None:
    alone, synced = small_net(), small_net()
    train(alone, ivon(alone.parameters(), mc_samples=mc_samples))
    train(synced, ivon(synced.parameters(), mc_samples=mc_samples, sync=True))
    assert equal_weights(alone, synced)
    assert not equal_weights(alone, small_net())


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_group_of_one_trains_as_no_group(dtype: torch.dtype) -> None:
    alone, bare, net = (small_net(dtype) for _ in range(3))
    train(alone, ivon(alone.parameters(), mc_samples=2))
    train(bare, ivon(bare.parameters(), mc_samples=2, sync=True))
    model, optimizer = wrapped(net), ivon(net.parameters(), mc_samples=2, sync=True)
    rank_average.register(model, optimizer)
    train(model, optimizer)
    assert equal_weights(alone, bare)
    assert equal_weights(alone, net)


@pytest.mark.usefixtures("group_of_one")
def test_parameters_of_another_optimizer_share_a_bucket() -> None:
    alone, net = small_net(), small_net()
    train(alone, ivon(alone[0].parameters()), SGD(alone[3].parameters(), lr=0.01))
    model, optimizer = wrapped(net), ivon(net[0].parameters(), sync=True)
    rank_average.register(model, optimizer)
    train(model, optimizer, SGD(net[3].parameters(), lr=0.01))
    assert equal_weights(alone, net)


@pytest.mark.usefixtures("group_of_one")
def test_gradients_cleared_inside_a_sample_take_their_averages_along() -> None:
    net, twin = small_net(), small_net()
    model, optimizer, other = wrapped(net), ivon(net.parameters(), sync=True), ivon(twin.parameters(), sync=True)
    rank_average.register(model, optimizer)
    images_BCHW = torch.ones(5, 2, 4, 4)
    with optimizer.sampled_params(train=True):
        model(-images_BCHW).sum().backward()
        optimizer.zero_grad()
        model(images_BCHW).square().sum().backward()
    with other.sampled_params(train=True):
        twin(images_BCHW).square().sum().backward()
    optimizer.step()
    other.step()
    assert equal_weights(net, twin)


@pytest.mark.usefixtures("group_of_one")
def test_only_the_estimates_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net()
    model, optimizer = wrapped(net), ivon(net.parameters(), sync=True)
    rank_average.register(model, optimizer)
    kept: dict[int, int] = {}

    def note(averages: Averages) -> None:
        for parameter, estimate in averages.items():
            assert estimate is not None
            assert estimate.stride() == parameter.stride()
            storage = estimate.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()

    monkeypatch.setattr(optimizer, "take_averages", note)
    with optimizer.sampled_params(train=True):
        model(torch.ones(5, 2, 4, 4)).square().sum().backward()
    assert sum(kept.values()) == sum(parameter.nbytes for parameter in net.parameters())


@pytest.mark.usefixtures("group_of_one")
def test_no_hook_where_none_is_needed() -> None:
    net = small_net()
    model = wrapped(net)
    rank_average.register(net, ivon(net.parameters(), sync=True))
    rank_average.register(model, ivon(net.parameters()))
    rank_average.register(model, SGD(net.parameters(), lr=0.1))
    rank_average.register(model, ivon(net.parameters(), sync=True))
    with pytest.raises(RuntimeError, match="can only be called once"):  # DDP takes one hook, and has it now
        rank_average.register(model, ivon(net.parameters(), sync=True))


def sizes_of(buckets: Iterator[list[Tensor]]) -> list[list[int]]:
    return [[parameter.numel() for parameter in bucket] for bucket in buckets]


def test_a_bucket_has_one_type_and_device_and_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_average, "BUCKET_BYTES", 40)
    parameters = [torch.empty(n) for n in (4, 6, 1, 50, 2)]
    assert sizes_of(rank_average._buckets(parameters)) == [[4, 6], [1], [50], [2]]
    others = [torch.empty(1), torch.empty(2).double(), torch.empty(3, device="meta"), torch.empty(4, device="meta")]
    assert sizes_of(rank_average._buckets(others)) == [[1], [2], [3, 4]]
    assert sizes_of(rank_average._buckets([])) == []


def test_gradients_that_cancel_do_not_hide_estimates_that_overflow() -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = ivon([weight], mc_samples=2)
    for slope in (1e30, -1e30):
        optimizer.zero_grad()
        with optimizer.sampled_params(train=True):
            (slope * weight).sum().backward()
    optimizer.step()
    assert optimizer.num_skipped_steps == 1
    assert torch.equal(weight, torch.ones(4))
