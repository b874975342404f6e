"""StringColumn: a million short texts without a million Python objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class StringColumn(Sequence[str]):
    """N texts in Arrow arrays: their bytes one after the other, and 4 bytes each to say where they begin."""

    def __init__(self, parts: Sequence[pa.StringArray]) -> None:
        """The texts of all parts, one after the other."""
        self._texts = pa.chunked_array(parts, pa.string())

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice | NDArray[np.int64]) -> StringColumn: ...
    def __getitem__(self, index: int | slice | NDArray[np.int64]) -> str | StringColumn:
        if isinstance(index, slice):
            return StringColumn(self._texts[index].chunks)
        if isinstance(index, np.ndarray):
            rows = np.ascontiguousarray(index, dtype=np.int64)  # `pa.array` would import pandas
            taken = self._texts.take(pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)]))
            return StringColumn(taken.chunks)
        text: str = self._texts[int(index)].as_py()
        return text

    def __iter__(self) -> Iterator[str]:
        return (text.as_py() for text in self._texts)

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:  # noqa: A002 -- the protocol's name
        """What `pa.array` makes of it."""
        return self._texts.cast(type or pa.string()).combine_chunks()

    def find(self, text: str) -> int | None:
        """Place of the first such text; None if there is none."""
        row: int = pc.index(self._texts, text).as_py()
        return None if row < 0 else row

    def tolist(self) -> list[str]:
        """All of them."""
        texts: list[str] = self._texts.to_pylist()
        return texts
