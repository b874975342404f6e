"""Memory for batches of pictures, used again once nobody holds the batch.

A batch is tens of megabytes; asking the system for them anew each time, page by page, took a seventh of the loader's
time.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray


class BatchMemory:
    """Lends arrays of one shape, uint8. May be shared between threads."""

    def __init__(self, shape: tuple[int, ...], max_idle: int) -> None:
        self._shape = shape
        self._idle: deque[bytearray] = deque(maxlen=max_idle)

    def lend(self) -> NDArray[np.uint8]:
        """An array, its content whatever was there. It is taken back when the last array or tensor that shares its
        memory is gone, so whoever keeps one keeps it unchanged."""
        try:
            memory = self._idle.pop()
        except IndexError:
            memory = bytearray(math.prod(self._shape))
        # NumPy lets a view of a view refer to the innermost *array*; as the memory is none, all views refer to this.
        flat = np.frombuffer(memory, dtype=np.uint8)
        weakref.finalize(flat, self._idle.append, memory).atexit = False
        return flat.reshape(self._shape)
