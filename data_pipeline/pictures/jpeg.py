"""JPEG bytes -> the pixels that a crop needs, by libjpeg-turbo (simplejpeg); no more of the file than that.

Two ways to do less than decoding it all, both with the crop known beforehand:

- `fraction`: libjpeg decodes to 1/2, 1/4 or 1/8 of the size from the low frequencies alone: less work, and no aliasing.
- `num_rows`: nothing below the crop is decoded. libjpeg-turbo can stop early, simplejpeg does not pass that on; but the
  height that the file's frame header states is what the decoder goes by, so it is given a smaller one. It then finds
  bytes behind what it takes for the last row, and warns of them; by then the rows are there.

The rows that come out are, to the bit, those of a whole decode.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from data_pipeline.errors import BadImageError

FRACTIONS = (8, 4, 2)
"""Denominators of the sizes that libjpeg-turbo decodes to with its vector instructions, smallest size first."""

_MAGIC = b"\xff\xd8\xff"
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_TABLES_AND_NOTES = frozenset({0xC4, 0xDB, 0xFE, *range(0xE0, 0xF0)})  # DHT, DQT, COM, APPn
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = b"\xff\xd9"
_ROWS_OF_CONTEXT = 2  # one row of chroma at half the resolution: what smooth upsampling looks at beyond a row
_KEPT_BYTES = 32_000_000
_BYTES_BEHIND_THE_LAST_ROW = "extraneous bytes before marker"


class JpegHeader(NamedTuple):
    """What the frame header says."""

    height: int
    width: int
    colours: str
    """simplejpeg's word: YCbCr, RGB, Gray, CMYK or YCCK."""


class PixelBuffer:
    """Memory for decoded pixels, used for one picture after the other: asking the system for it costs as much as a
    twentieth of the decoding. What it lends is good until it is asked again. One a thread."""

    def __init__(self) -> None:
        self._memory: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def lend(self, height: int, width: int) -> NDArray[np.uint8]:
        """uint8 (height, width, 3), its content whatever was there."""
        size = height * width * 3
        if size > _KEPT_BYTES:
            return np.empty((height, width, 3), dtype=np.uint8)
        if size > len(self._memory):
            self._memory = np.empty(size, dtype=np.uint8)
        return self._memory[:size].reshape(height, width, 3)


def read_header(data: bytes) -> JpegHeader | None:
    """None: no JPEG, or one that libjpeg-turbo cannot make sense of."""
    if not data.startswith(_MAGIC):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError:
        return None
    return JpegHeader(int(height), int(width), str(colours))


def decode_top(
    data: bytes, header: JpegHeader, buffer: PixelBuffer, *, num_rows: int, fraction: int = 1
) -> NDArray[np.uint8]:
    """At least the upper `num_rows` rows at 1/fraction of the size: uint8 (ceil(rows/fraction), ceil(W/fraction), 3),
    RGB, lent by the buffer. BadImageError if it is cut, or damaged where it was decoded; damage below goes unseen."""
    assert 0 < num_rows <= header.height
    assert fraction in (1, *FRACTIONS)
    stated_height = num_rows + _ROWS_OF_CONTEXT * fraction
    place = _height_place(data) if stated_height < header.height else None
    if place is None:
        stated_height = header.height
        file: bytes | bytearray = data
    else:
        file = bytearray(data)
        file[place : place + 2] = stated_height.to_bytes(2, "big")
    pixels = buffer.lend(-(-stated_height // fraction), -(-header.width // fraction))
    smallest = pixels.shape[:2] if fraction > 1 else (0, 0)  # simplejpeg takes the smallest size that is not below it
    try:
        simplejpeg.decode_jpeg(
            file, colorspace="RGB", buffer=pixels, strict=True, min_height=smallest[0], min_width=smallest[1]
        )
    except ValueError as error:
        # Strict means that the first warning ends it, and in a scan without restart markers this one comes at its end.
        if place is None or _BYTES_BEHIND_THE_LAST_ROW not in str(error):
            raise BadImageError(f"damaged JPEG: {error}") from None
    return pixels


def _height_place(data: bytes) -> int | None:
    """Where the height stands in the file, if rows can be left out: Huffman-coded, all channels in a single scan, no
    restart markers, not cut. Any doubt means None, and the picture is decoded whole."""
    place, height_place, num_channels = 2, None, 0
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _SEQUENTIAL_FRAMES:
            height_place, num_channels = place + 5, data[place + 9]
        elif marker == _START_OF_SCAN:
            is_whole = data.rfind(_END_OF_IMAGE, place) >= 0  # decoding it all then tells what is wrong
            return height_place if is_whole and data[place + 4] == num_channels else None
        elif marker not in _TABLES_AND_NOTES:  # restart interval, progressive or arithmetic frame, or out of step
            return None
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    return None
