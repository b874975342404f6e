"""Memory that is lent again, and not a moment too early."""

from __future__ import annotations

import numpy as np
import torch

from data_pipeline.pictures.batch_memory import BatchMemory

SHAPE = (4, 3, 2)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_used_again_when_its_array_is_gone():
    memory = BatchMemory(SHAPE, max_idle=2)
    first = memory.lend()
    assert (first.shape, first.dtype) == (SHAPE, np.uint8)
    where = address(first)
    other = memory.lend()
    assert address(other) != where
    del first
    assert address(memory.lend()) == where


def test_whoever_keeps_a_part_keeps_the_memory():
    memory = BatchMemory(SHAPE, max_idle=2)
    for part_of in (
        lambda lent: lent[1:, :, 0],
        torch.from_numpy,
        lambda lent: torch.from_numpy(lent)[2].view(-1),
        lambda lent: torch.from_numpy(lent).numpy()[1],
        memoryview,
    ):
        lent = memory.lend()
        lent[:] = 7
        part = part_of(lent)
        del lent
        for _ in range(3):
            memory.lend()[:] = 9
        assert (np.asarray(part) == 7).all()


def test_no_more_is_kept_than_asked_for():
    memory = BatchMemory(SHAPE, max_idle=2)
    lent = [memory.lend() for _ in range(5)]
    assert len({address(array) for array in lent}) == 5
    del lent
    assert len(memory._idle) == 2
