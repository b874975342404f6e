"""Whatever the bytes, decoding gives pixels or a BadImageError."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_data import encoded, photo

from data_pipeline.errors import BadImageError
from data_pipeline.pictures.decode import decode, image_shape

FILES = [
    encoded(photo(1, 24, 31)),
    encoded(photo(2, 24, 31, "CMYK")),
    encoded(photo(3, 24, 31, "L")),
    encoded(photo(4, 24, 31), "PNG"),
    encoded(photo(5, 24, 31), "WEBP"),
    encoded(photo(6, 24, 31), "GIF"),
    encoded(photo(7, 24, 31), "BMP"),
]


def check(data: bytes) -> None:
    try:
        shape = image_shape(data)
        pixels = decode(data)
    except BadImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*shape, 3)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes(data):
    check(data)
    check(b"\xff\xd8\xff" + data)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.integers(0, 40),
)
def test_changed_and_cut_files(file, changes, cut):
    data = bytearray(file[: len(file) - cut])
    for place, value in changes:
        data[place % len(data)] = value
    check(bytes(data))
