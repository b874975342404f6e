"""Work on many weights at once, shared out over as many threads as torch uses. What runs there releases the GIL.

Never on the calling thread: Python interrupts the main one (Ctrl-C) between any two calls, and weights half moved to a
sample could not be moved back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")


@lru_cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="hush-optim")


os.register_at_fork(after_in_child=_pool.cache_clear)  # whose threads stay with the parent


def run_all(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run the tasks, and wait until all have ended even if one fails; their results in order."""
    pool = _pool(min(torch.get_num_threads(), len(tasks)))
    futures = [pool.submit(task) for task in tasks]
    try:
        return [future.result() for future in futures]
    finally:
        wait(futures)
