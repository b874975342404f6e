"""What Ray starts on each rank: a worker of Ray Train that imports what training needs while Ray still sets it up."""

from __future__ import annotations

import importlib
import os
import socket
import threading

from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

NEEDED = ("torch", "trainer.attempt")


class Rank(RayTrainWorker):
    """A rank's process. Its imports take seconds, so they begin at once, beside Ray Train's own messages."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        threading.Thread(target=import_needed, name="imports", daemon=True).start()


def import_needed() -> None:
    """Import what a rank needs up to its first step; returns when that is done, whoever began it."""
    for name in NEEDED:
        importlib.import_module(name)


def free_address() -> tuple[str, int]:
    """An address of this machine that other ranks reach, with a port that nobody listens on now."""
    import ray.util  # noqa: PLC0415

    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return host, probe.getsockname()[1]


def join_group(address: tuple[str, int], backend: str) -> None:
    """Join the process group whose rank 0 listens at `address`, with what torchrun would have told this rank."""
    import ray.train  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    from trainer.ranks import GROUP_TIMEOUT  # noqa: PLC0415

    context = ray.train.get_context()
    host, port = address
    os.environ |= {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }
    if backend == "nccl":
        import torch  # noqa: PLC0415

        torch.cuda.set_device(context.get_local_rank())
    dist.init_process_group(backend, timeout=GROUP_TIMEOUT)
