"""Which shards a rank will need next, so that they can be fetched before. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Lookahead:
    """Where in a rank's rows of an epoch each shard is needed first and last."""

    def __init__(self, shards_M: NDArray[np.int32]) -> None:
        """`shards_M`: the shard of each of the rank's rows, in the order in which they are read."""
        shards_H, first_H = np.unique(shards_M, return_index=True)
        _, from_end_H = np.unique(shards_M[::-1], return_index=True)
        by_need = np.argsort(first_H)
        self._shards_H, self._first_H = shards_H[by_need], first_H[by_need]
        self._last_H = (len(shards_M) - 1 - from_end_H)[by_need]

    def shards(self, start: int, end: int) -> list[int]:
        """The shards that rows start .. end - 1 lie in or between, those needed first in front."""
        wanted_H: NDArray[np.int32] = self._shards_H[(self._first_H < end) & (self._last_H >= start)]
        return [int(shard) for shard in wanted_H]
