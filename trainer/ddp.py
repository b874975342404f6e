"""DDP around a network, without the seconds that its first use costs.

torch imports its compiler (torch._dynamo with inductor and sympy: 3.6 CPU-seconds a process) the first time an
optimizer or DDP is built, only to tell the compiler what not to compile. Nothing here is compiled, so both are spared
the question. If a later torch asks in another way, the import comes back: slower, not wrong.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trainer.ranks import Ranks


def wrap(network: nn.Module, ranks: Ranks) -> nn.Module:
    """The network itself in a single process, else wrapped so that backward averages gradients over ranks.

    Buffers are not broadcast at each step: `average_statistics` does it when somebody reads them.
    """
    if ranks.world_size == 1:
        return network
    with without_compiler(), warnings.catch_warnings():
        # From torch 2.15 on the switch has a new name, which is unknown before, and the old one warns.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def without_averaging(model: nn.Module) -> AbstractContextManager[None]:
    """Forward *and* backward inside leave each rank its own gradient. `model` is what `wrap` returned."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


@torch.no_grad()
def average_statistics(network: nn.Module, ranks: Ranks) -> None:
    """Make BatchNorm's running statistics their mean over the ranks, each of which saw other examples."""
    if ranks.world_size > 1:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                ranks.sum_(buffer).div_(ranks.world_size)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside, building DDP or an optimizer does not import torch's compiler."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    for method in (Optimizer.add_param_group, Optimizer.state_dict, Optimizer.load_state_dict, Optimizer.zero_grad):
        _stay_uncompiled(method)
    _stay_uncompiled(getattr(DistributedDataParallel._inside_ddp_forward, "__wrapped__", None))
    stand_in = SimpleNamespace(utils=SimpleNamespace(get_optimize_ddp_mode=lambda: "no_optimization"))
    vars(torch)["_dynamo"] = stand_in
    try:
        yield
    finally:
        if vars(torch).get("_dynamo") is stand_in:
            del vars(torch)["_dynamo"]


def _stay_uncompiled(method: object) -> None:
    """Answer torch._disable_dynamo in advance: its wrapper looks for this attribute before it imports the compiler."""
    wrapped = getattr(method, "__wrapped__", None)
    if wrapped is not None:
        vars(wrapped).setdefault("__dynamo_disable", wrapped)
