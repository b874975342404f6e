"""Texts in Arrow arrays behave as a sequence of str."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.string_column import StringColumn


@pytest.fixture
def column() -> StringColumn:
    return StringColumn([pa.array(["a", "bb"]), pa.array([], pa.string()), pa.array(["ccc", "ü"])])


def test_it_is_a_sequence_of_str(column):
    assert len(column) == 4
    assert list(column) == column.tolist() == ["a", "bb", "ccc", "ü"]
    assert (column[0], column[2], column[-1], column[np.int32(3)]) == ("a", "ccc", "ü", "ü")
    assert type(column[1]) is str
    with pytest.raises(IndexError):
        column[4]


def test_rows_and_slices(column):
    assert column[1:3].tolist() == ["bb", "ccc"]
    for dtype in (np.int32, np.int64):
        assert column[np.array([3, 0, 3], dtype=dtype)].tolist() == ["ü", "a", "ü"]
    assert column[np.array([3, 2, 1, 0])[::2]].tolist() == ["ü", "bb"]
    assert column[np.array([], dtype=np.int64)].tolist() == []


@pytest.mark.parametrize("type_", [None, pa.string(), pa.large_string()])
def test_arrow_takes_it_for_an_array(column, type_):
    array = pa.array(column, type_)
    assert array.to_pylist() == ["a", "bb", "ccc", "ü"]
    assert array.type == (type_ or pa.string())


def test_none_at_all():
    assert StringColumn([]).tolist() == pa.array(StringColumn([])).to_pylist() == []
