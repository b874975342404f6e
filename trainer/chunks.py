"""A split on the device, several batches at a time.

A sample of the weights costs a draw for each of them, so that many images should share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.loader import Loader
from data_pipeline.pictures.augment import to_model_input

MAX_CHUNK_BYTES = 256 * 2**20
"""Float32 images of a chunk."""


@dataclass(frozen=True)
class Chunk:
    """Some examples of a split, on the device."""

    images_BCHW: Tensor
    given_labels_B: Tensor
    clean_labels_B: Tensor
    valid_B: Tensor
    """False: padding or unreadable."""
    rows_B: Tensor
    """Rows of the table; -1 where not valid."""


def chunks(loader: Loader, device: torch.device, max_bytes: int = MAX_CHUNK_BYTES) -> Iterator[Chunk]:
    """This rank's share of a split, in as many chunks on every rank; with `max_bytes` 0 each batch is a chunk."""
    batches: list[Chunk] = []
    for batch in loader.epoch(0):
        chunk = Chunk(
            images_BCHW=to_model_input(batch.images_BHWC, batch.flip_B, device),
            given_labels_B=batch.given_labels_B.to(device),
            clean_labels_B=batch.clean_labels_B.to(device),
            valid_B=batch.valid_B.to(device),
            rows_B=torch.where(batch.valid_B, batch.indices_B, -1).to(device),
        )
        batches.append(chunk)
        if sum(part.images_BCHW.nbytes for part in batches) >= max_bytes:
            yield _joined(batches)
            batches = []
    if batches:
        yield _joined(batches)


def _joined(parts: list[Chunk]) -> Chunk:
    return Chunk(
        images_BCHW=torch.cat([part.images_BCHW for part in parts]),
        given_labels_B=torch.cat([part.given_labels_B for part in parts]),
        clean_labels_B=torch.cat([part.clean_labels_B for part in parts]),
        valid_B=torch.cat([part.valid_B for part in parts]),
        rows_B=torch.cat([part.rows_B for part in parts]),
    )
