"""The process group: who am I, on which device, and the few collectives that training needs.

One process, `torchrun` and Ray Train lead to the same `Ranks`, so that the loop has one code path. Control messages and
rows for rank 0 go through gloo on the CPU whatever the training backend: they neither wait for a GPU nor hold one up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from trainer.errors import SpecRejectedError

GROUP_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up: rank 0 alone writes checkpoints, pictures and results."""


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size` equal ones."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    """gloo group of all ranks, where the default group is not one; None: the default group."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0: the one that writes files and talks to the outside."""
        return self.rank == 0

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` (on the device or the CPU) over all ranks, in place; every rank gets the same bits."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.control if values.device.type == "cpu" else None)
        return values

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Rows of all ranks (equal shapes), in order of rank, on rank 0; None elsewhere. In and out on the CPU."""
        if self.world_size == 1:
            return rows
        received = [torch.empty_like(rows) for _ in range(self.world_size)] if self.is_main else None
        dist.gather(rows.contiguous(), received, dst=0, group=self.control)
        return torch.cat(received) if received is not None else None

    def gather_text(self, text: str) -> list[str] | None:
        """The texts of all ranks, in order of rank, on rank 0; None elsewhere."""
        if self.world_size == 1:
            return [text]
        received = [""] * self.world_size if self.is_main else None
        dist.gather_object(text, received, dst=0, group=self.control)
        return received

    def broadcast(self, values: torch.Tensor) -> torch.Tensor:
        """Rank 0's `values` (on the CPU) on every rank, in place."""
        if self.world_size > 1:
            dist.broadcast(values, src=0, group=self.control)
        return values

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text on every rank."""
        if self.world_size == 1:
            return text
        texts = [text]
        dist.broadcast_object_list(texts, src=0, group=self.control)
        return texts[0]


@contextmanager
def joined_ranks(*, use_gpu: bool) -> Iterator[Ranks]:
    """Join the process group that Ray Train set up, or the one that `torchrun` describes, or be alone.

    A group made here is left at the end; one that was there before is not touched.
    """
    if use_gpu and not torch.cuda.is_available():
        raise SpecRejectedError("resources.gpus_per_worker = 1: no GPU is visible here; must be 0")
    found = dist.is_available() and dist.is_initialized()
    if not found and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if use_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if use_gpu else "gloo", timeout=GROUP_TIMEOUT)
    try:
        yield _ranks(use_gpu=use_gpu)
    finally:
        if not found and dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _ranks(*, use_gpu: bool) -> Ranks:
    device = torch.device("cuda", torch.cuda.current_device()) if use_gpu else torch.device("cpu")
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Ranks(rank=0, world_size=1, device=device)
    control: dist.ProcessGroup | None = None
    if use_gpu:
        control = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT)  # type: ignore[assignment]  # a member's never int
    return Ranks(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device, control=control)
