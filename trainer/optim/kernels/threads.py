"""Work on many weights at once, shared out over as many threads as torch uses. What runs there releases the GIL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")


@lru_cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="hush-optim")


def run_all(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run the tasks, and wait until all have ended even if one fails; their results in order."""
    num_threads = min(torch.get_num_threads(), len(tasks))
    if num_threads <= 1:
        return [task() for task in tasks]
    futures = [_pool(num_threads).submit(task) for task in tasks]
    try:
        return [future.result() for future in futures]
    finally:
        wait(futures)
