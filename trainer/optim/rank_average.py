"""Gradients and Hessian estimates of a sample averaged over ranks, each of which drew its own noise.

Σ_r e_r⊙ĝ_r is not made from Σ_r ĝ_r, so that both are sent: twice the traffic of ordinary DDP. Under DDP a
communication hook sends both of a bucket in one all-reduce, while the backward pass goes on to the next bucket. A bare
model's are averaged when its sample ends.

(No `from __future__ import annotations` here: DDP compares the hook's annotations with classes.)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trainer.optim.layout import is_dense

if TYPE_CHECKING:
    from trainer.optim.ivon import IVON

BUCKET_BYTES = 25 * 2**20
"""Gradients sent at a time for a bare model; also DDP's default."""

Estimate = Callable[[Tensor, Tensor], Tensor]
"""(parameter, this rank's gradient) -> f, this rank's estimate of the Hessian."""
Averages = dict[Tensor, Tensor | None]
"""f averaged over ranks, by parameter; None where none is needed. The gradient is averaged in place."""


def num_ranks() -> int:
    """Processes of the default group; 1 where there is no group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def this_rank() -> int:
    """This process's number in the default group; 0 where there is no group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


# ------------------------------------------------------------------------------------------------------- under DDP


def register(model: nn.Module, optimizer: Optimizer) -> None:
    """Have DDP average what the optimizer needs beside gradients. Nothing to do on one rank, and for most optimizers.

    To be called before the first backward pass. Outside an open training sample DDP then does what it always does.
    """
    from trainer.optim.ivon import IVON  # noqa: PLC0415 (a cycle: it averages a bare model's with the lower half)

    if isinstance(model, DistributedDataParallel) and isinstance(optimizer, IVON) and optimizer.sync:
        model.register_comm_hook(_Receiver(optimizer, model.process_group), average_bucket)


@dataclass(frozen=True)
class _Receiver:
    """Who makes the estimates and takes their averages, and over which ranks."""

    optimizer: "IVON"
    group: dist.ProcessGroup


def average_bucket(
    receiver: _Receiver,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # there, but torch doesn't say that it exports it
) -> torch.futures.Future[torch.Tensor]:
    """DDP's communication hook: [gradients | estimates] of a bucket in one asynchronous all-reduce.

    DDP calls it in the backward pass, when the last gradient of the bucket is there, and backward returns after the
    continuation: on a GPU, the stream that called backward waits for it. All memory is taken on the calling stream, so
    that what the continuation's own stream writes can be used and freed like any other tensor. Beside the estimates
    themselves, it is twice the bucket's, until the bucket is done.
    """
    optimizer, num_ranks = receiver.optimizer, receiver.group.size()
    gradients: Tensor = bucket.buffer()
    parameters: list[Tensor] = bucket.parameters()
    estimated = [parameter for parameter in parameters if optimizer.needs_estimate(parameter)]
    estimates = gradients.new_empty(_num_weights(estimated))
    both = gradients
    if estimated:
        both = gradients.new_empty(gradients.numel() + estimates.numel())
        both[: gradients.numel()].copy_(gradients)
    _write_estimates(both[gradients.numel() :], estimated, optimizer.estimate)

    def receive(future: torch.futures.Future[list[Tensor]]) -> Tensor:
        total = future.value()[0]
        torch.div(total[: gradients.numel()], num_ranks, out=gradients)
        torch.div(total[gradients.numel() :], num_ranks, out=estimates)
        averages: Averages = dict.fromkeys(parameters)
        optimizer.take_averages(averages | dict(zip(estimated, _side_by_side(estimates, estimated), strict=True)))
        return gradients

    work = dist.all_reduce(both, group=receiver.group, async_op=True)
    return work.get_future().then(receive)


# ---------------------------------------------------------------------------------------------------- a bare model


def average_now(parameters: Sequence[Tensor], estimate: Estimate | None) -> Averages:
    """Average gradients, in place, and estimates over the default group, and wait for it.

    All ranks call it with the same parameters. A rank without a gradient counts as 0 and receives the average; a
    parameter without a gradient on any rank stays without.
    """
    averages: Averages = {}
    for bucket in _buckets(parameters):
        averages |= _average_bucket_now(bucket, estimate)
    return averages


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type and device, up to BUCKET_BYTES together, or one larger parameter."""
    bucket: list[Tensor] = []
    size_bytes = 0
    for parameter in parameters:
        alike = bucket and (parameter.dtype, parameter.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and not (alike and size_bytes + parameter.nbytes <= BUCKET_BYTES):
            yield bucket
            bucket, size_bytes = [], 0
        bucket.append(parameter)
        size_bytes += parameter.nbytes
    if bucket:
        yield bucket


def _average_bucket_now(parameters: list[Tensor], estimate: Estimate | None) -> Averages:
    """[gradients | estimates | which gradients are there] in one all-reduce."""
    num_weights = _num_weights(parameters)
    num_estimates = 0 if estimate is None else num_weights
    both = parameters[0].new_zeros(num_weights + num_estimates + len(parameters))
    gradients, estimates, present = torch.split(both, [num_weights, num_estimates, len(parameters)])
    for index, (parameter, view) in enumerate(zip(parameters, _side_by_side(gradients, parameters), strict=True)):
        if parameter.grad is not None:
            view.copy_(parameter.grad)
            present[index] = 1
    if estimate is not None:
        _write_estimates(estimates, parameters, estimate)
    dist.all_reduce(both)
    both.div_(num_ranks())
    has_all = all(parameter.grad is not None for parameter in parameters)
    is_present = [True] * len(parameters) if has_all else present.bool().tolist()  # waits for the device
    for parameter, view, there in zip(parameters, _side_by_side(gradients, parameters), is_present, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(view)
        elif there:
            parameter.grad = view.clone()
    if estimate is None:
        return dict.fromkeys(parameters)
    return dict(zip(parameters, _side_by_side(estimates.clone(), parameters), strict=True))


# --------------------------------------------------------------------------------------------------- flat memory


def _num_weights(parameters: Sequence[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _side_by_side(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Views of flat memory, shaped and laid out like the parameters, so that channels_last weights need no transpose.

    The layout depends on the parameters alone: all ranks have the same. (`GradBucket.gradients` has not this layout.)
    """
    parts = torch.split(flat, [parameter.numel() for parameter in parameters])
    return [
        part.as_strided(parameter.size(), parameter.stride()) if is_dense(parameter) else part.view(parameter.size())
        for part, parameter in zip(parts, parameters, strict=True)
    ]


def _write_estimates(flat: Tensor, parameters: Sequence[Tensor], estimate: Estimate) -> None:
    """f of each parameter from its gradient, 0 where there is none, side by side."""
    for parameter, view in zip(parameters, _side_by_side(flat, parameters), strict=True):
        if parameter.grad is None:
            view.zero_()
        else:
            view.copy_(estimate(parameter, parameter.grad))
