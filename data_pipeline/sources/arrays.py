"""Data sets whose pictures and labels lie in arrays, parted into train and test; what MNIST and CIFAR have in common.

`num_val` training examples, drawn by `val_seed`, become val. Pictures become PNG files, pixel for pixel.

example_id: where it stands in the original files: `train-00012` (also where it is in val), `test-00034`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.sources.base import SourceExample, SplitName
from data_pipeline.sources.hold_out import hold_out

PartName = Literal["train", "test"]


class Part(NamedTuple):
    """N pictures, and their labels."""

    pictures: NDArray[np.uint8]
    """(N, H, W), grey, or (N, H, W, 3), RGB."""
    labels_N: NDArray[np.integer[Any]]
    """From 0 up; held to be right."""


class ArraySource:
    """A source in memory."""

    def __init__(
        self, name: str, classes: tuple[str, ...], parts: dict[PartName, Part], *, num_val: int, val_seed: int
    ) -> None:
        self.name, self.classes = name, classes
        self._parts = parts
        train, val = hold_out(len(parts["train"].labels_N), num_val, val_seed)
        test = list(range(len(parts["test"].labels_N)))
        self._rows: dict[SplitName, list[int]] = {"train": train, "val": val, "test": test}
        self.notes = (f"val: {num_val:,} training examples drawn by seed {val_seed}",) if num_val else ()

    def examples(self) -> Iterator[SourceExample]:
        """train, val, test; within each in the order of the files."""
        for split, rows in self._rows.items():
            name = _part_name(split)
            for row in rows:
                label = int(self._parts[name].labels_N[row])
                yield SourceExample(f"{name}-{row:05d}", str(row), "png", split, label, label)

    def read(self, example: SourceExample) -> bytes:
        """The picture as a PNG."""
        return png_file(self._parts[_part_name(example.split)].pictures[int(example.key)])


def png_file(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W) or (H, W, 3) -> the content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")
    return file.getvalue()


def _part_name(split: SplitName) -> PartName:
    return "test" if split == "test" else "train"
