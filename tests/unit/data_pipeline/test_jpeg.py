"""Decoding no more of a JPEG than its crop needs: the same pixels as from all of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sample_data import encoded, photo

from data_pipeline.errors import BadImageError
from data_pipeline.pictures.jpeg import JpegHeader, PixelBuffer, decode_top, read_header

HEIGHT, WIDTH = 203, 150


def jpeg(**options) -> bytes:
    file = io.BytesIO()
    photo(3, HEIGHT, WIDTH, options.pop("mode", "RGB")).save(file, format="JPEG", **options)
    return file.getvalue()


def header_of(data: bytes) -> JpegHeader:
    header = read_header(data)
    assert header is not None
    return header


def top(data: bytes, num_rows: int, fraction: int = 1, buffer: PixelBuffer | None = None) -> np.ndarray:
    return decode_top(data, header_of(data), buffer or PixelBuffer(), num_rows=num_rows, fraction=fraction)


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """Behind the start of the file."""
    return data[:2] + bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content + data[2:]


PLAIN = {
    "4:4:4": jpeg(subsampling="4:4:4"),
    "4:2:2": jpeg(subsampling="4:2:2"),
    "4:2:0": jpeg(subsampling="4:2:0", quality=95),
    "grey": jpeg(mode="L"),
    "notes": with_segment(jpeg(comment=b"\xff\xc0 in a comment"), 0xE1, b"\xff\xd8 a small picture \xff\xd9"),
    "bytes behind the end": jpeg() + bytes(3000),
}
WHOLE_ONLY = {
    "progressive": jpeg(progressive=True),
    "restart markers": jpeg(restart_marker_rows=1),
}


@pytest.mark.parametrize("data", (PLAIN | WHOLE_ONLY).values(), ids=(PLAIN | WHOLE_ONLY).keys())
def test_rows_are_those_of_a_whole_decode(data):
    whole = top(data, HEIGHT)
    assert whole.shape == (HEIGHT, WIDTH, 3)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(whole, np.asarray(image.convert("RGB")))
    for num_rows in [*range(1, 36), 100, 111, 112, 113, HEIGHT - 3, HEIGHT - 2, HEIGHT - 1]:
        np.testing.assert_array_equal(top(data, num_rows)[:num_rows], whole[:num_rows])


@pytest.mark.parametrize("fraction", [2, 4, 8])
@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN.keys())
def test_smaller_rows_are_those_of_a_whole_decode(data, fraction):
    whole = top(data, HEIGHT, fraction)
    assert whole.shape == (-(-HEIGHT // fraction), -(-WIDTH // fraction), 3)
    with Image.open(io.BytesIO(data)) as image:
        averaged = image.convert("RGB").reduce(fraction)
        assert np.abs(whole.astype(int) - np.asarray(averaged)).mean() < 3
    for num_rows in (1, 7, 16, 17, 64, 100, 190):
        here = -(-num_rows // fraction)
        np.testing.assert_array_equal(top(data, num_rows, fraction)[:here], whole[:here])


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN.keys())
def test_rows_below_are_not_decoded(data):
    assert top(data, 40).shape[0] == 42
    assert top(data, 40, fraction=4).shape[0] == 12


@pytest.mark.parametrize("data", WHOLE_ONLY.values(), ids=WHOLE_ONLY.keys())
def test_where_rows_cannot_be_left_out_all_are_decoded(data):
    assert top(data, 40).shape[0] == HEIGHT


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("num_rows", [8, HEIGHT])
def test_a_cut_file_is_an_error_wherever_the_crop_is(num_rows, share):
    """So that an example is quarantined in its first epoch, not in the first whose crop happens to need the end."""
    for data in (PLAIN["4:2:0"], PLAIN["notes"]):
        with pytest.raises(BadImageError, match=r"damaged JPEG: .*[Pp]remature end"):
            top(data[: int(len(data) * share)], num_rows)


def test_damage_above_the_last_row_is_an_error():
    data = bytearray(PLAIN["4:2:0"])
    place = data.index(b"\xff\xda") + 400
    data[place : place + 4] = b"\xff\xd9\xff\xd9"
    with pytest.raises(BadImageError, match="premature end of data segment"):
        top(bytes(data), 150)


def test_bytes_before_the_scan_that_belong_to_nothing_are_an_error():
    """Their warning reads like the one that is expected behind the last row, but no row has been decoded by then."""
    data = PLAIN["4:2:0"]
    place = data.index(b"\xff\xda")
    broken = data[:place] + b"lost" + data[place:]
    buffer = PixelBuffer()
    buffer.lend(HEIGHT, WIDTH)[:] = 7
    with pytest.raises(BadImageError, match="extraneous bytes"):
        decode_top(broken, header_of(data), buffer, num_rows=40)


def test_memory_is_used_again_and_not_kept_for_the_largest():
    buffer = PixelBuffer()
    first = top(PLAIN["4:2:0"], HEIGHT, buffer=buffer)
    assert np.shares_memory(first, top(PLAIN["grey"], 40, buffer=buffer))
    large = buffer.lend(4000, 4000)
    assert large.shape == (4000, 4000, 3)
    assert not np.shares_memory(large, buffer.lend(4000, 4000))


def test_what_is_no_jpeg_has_no_header():
    for data in (b"", b"\xff\xd8\xff", encoded(photo(1), "PNG")):
        assert read_header(data) is None
    assert header_of(jpeg(mode="CMYK")).colours in ("CMYK", "YCCK")
