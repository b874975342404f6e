"""A batch's pictures, where the loader's threads decode them: on the CPU here, on a CUDA device in cuda_decode.py."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from data_pipeline.errors import BadImageError
from data_pipeline.pictures.batch_memory import BatchMemory
from data_pipeline.pictures.crop import Box
from data_pipeline.pictures.decode import BoxDecoder, use_one_thread_per_call


class BatchDecoder(Protocol):
    """Fills batches of B pictures of S x S pixels. Safe to share between threads that fill different rows."""

    @property
    def pictures_per_call(self) -> int:
        """How many pictures of a batch one thread is best given at a time."""
        ...

    def lend(self) -> Tensor:
        """uint8 (B, S, S, 3) for a batch, its content whatever was there; the batch's as long as anybody holds it."""
        ...

    def decode_boxes(
        self, contents: Sequence[bytes | BadImageError], boxes: Sequence[Box], out_NSSC: Tensor
    ) -> list[BadImageError | None]:
        """Write the box of each picture, resized, to its row of `out_NSSC`, rows of a batch; for each picture None, or
        what is wrong with it. What could not even be read is passed on."""
        ...


class CPUBatchDecoder:
    """libjpeg-turbo and Pillow, one decoder a thread."""

    def __init__(self, batch_size: int, image_size: int, *, num_threads: int, num_batches: int) -> None:
        """`num_batches`: those that are in the making at a time, by so many threads."""
        # Threads meet at Python's lock with each task, so tasks are as large as leaves two for each thread.
        self._pictures_per_call = min(batch_size, max(1, batch_size * num_batches // (2 * num_threads)))
        self._memory = BatchMemory((batch_size, image_size, image_size, 3), max_idle=num_batches + 1)
        self._of_thread = threading.local()
        use_one_thread_per_call()

    @property
    def pictures_per_call(self) -> int:
        return self._pictures_per_call

    def lend(self) -> Tensor:
        return torch.from_numpy(self._memory.lend())

    def decode_boxes(
        self, contents: Sequence[bytes | BadImageError], boxes: Sequence[Box], out_NSSC: Tensor
    ) -> list[BadImageError | None]:
        decoder = getattr(self._of_thread, "decoder", None)
        if decoder is None:
            decoder = self._of_thread.decoder = BoxDecoder()
        return [
            decoder.try_box(content, box, out_SSC)
            for content, box, out_SSC in zip(contents, boxes, out_NSSC.numpy(), strict=True)
        ]
