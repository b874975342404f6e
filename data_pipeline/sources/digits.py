"""scikit-learn's bundled handwritten digits: 1,797 real scans of 8 x 8 pixels, 10 classes (Alpaydin & Kaynak 1998).

No network needed. Scans come with 17 grey levels; they become 8-bit PNG files. The division is drawn once and for all:
1,297 train, 200 val, 300 test.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits

from data_pipeline.sources.arrays import png_file
from data_pipeline.sources.base import SourceExample, SplitName

SPLIT_SIZES: dict[SplitName, int] = {"train": 1297, "val": 200, "test": 300}
_SPLIT_SEED = 0


class Digits:
    """The digits as a source; ids `digit-0000` to `digit-1796` count in scikit-learn's order."""

    name = "digits"
    classes = tuple(str(digit) for digit in range(10))
    notes = ()

    def __init__(self) -> None:
        data = load_digits()
        self._scans_N88 = np.round(data.images * (255 / 16)).astype(np.uint8)
        self._labels_N = data.target

    def examples(self) -> Iterator[SourceExample]:
        """train, val, test; within each in scikit-learn's order."""
        shuffled = np.random.RandomState(_SPLIT_SEED).permutation(len(self._labels_N))
        start = 0
        for split, size in SPLIT_SIZES.items():
            for index in sorted(shuffled[start : start + size].tolist()):
                label = int(self._labels_N[index])
                yield SourceExample(f"digit-{index:04d}", str(index), "png", split, label, label)
            start += size

    def read(self, example: SourceExample) -> bytes:
        """The scan as a greyscale PNG."""
        return png_file(self._scans_N88[int(example.key)])
