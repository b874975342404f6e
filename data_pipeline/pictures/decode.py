"""Image bytes -> uint8 RGB pixels. JPEG by libjpeg-turbo (jpeg.py), all else by Pillow; resized by OpenCV.

EXIF orientation is ignored by both decoders, on purpose: a picture is its stored pixels, as in torchvision's
ImageFolder. So is transparency; and an animation is its first picture. Damage that libjpeg could paper over (a
truncated file, a broken Huffman code) is an error here, not a grey area in the picture.
"""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data_pipeline.errors import BadImageError
from data_pipeline.pictures import jpeg
from data_pipeline.pictures.crop import Box

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before decoding: a few bytes can claim to be a picture that fills the memory."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # Pillow knows formats that start other programs
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error)
_TURBO_COLOURS = ("YCbCr", "RGB", "Gray")  # CMYK and YCCK: Pillow, which knows Adobe's inverted inks


def image_shape(data: bytes) -> tuple[int, int]:
    """(height, width) from the header alone; BadImageError if it is no picture, too large, or of a kind that `decode`
    refuses."""
    header = jpeg.read_header(data)
    if header is not None:
        return _within_limit(header.height, header.width)
    with _open(data) as image:
        return image.height, image.width


def decode(data: bytes) -> NDArray[np.uint8]:
    """The whole picture: uint8 (height, width, 3), RGB."""
    header = _turbo_header(data)
    if header is None:
        return _decode_by_pillow(data)
    return jpeg.decode_top(data, header, jpeg.PixelBuffer(), num_rows=header.height)


class BoxDecoder:
    """Decodes what lies in a box of a picture, no more than it must. Keeps memory between pictures: one a thread."""

    def __init__(self) -> None:
        self._buffer = jpeg.PixelBuffer()

    def decode_box(self, data: bytes, box: Box, out_SSC: NDArray[np.uint8]) -> None:
        """Write the box of the picture, resized, to `out_SSC`: uint8 (S, S, 3), contiguous.

        BadImageError if the picture is damaged where it is needed, or too small for the box.
        """
        header = _turbo_header(data)
        if header is None:
            pixels_HWC = _decode_by_pillow(data)
            _check_box(box, pixels_HWC.shape[0], pixels_HWC.shape[1])
            resize_box(pixels_HWC, box, out_SSC)
            return
        _check_box(box, header.height, header.width)
        fraction = fraction_for(box, len(out_SSC))
        pixels_HWC = jpeg.decode_top(data, header, self._buffer, num_rows=box.top + box.height, fraction=fraction)
        if fraction == 1:
            resize_box(pixels_HWC, box, out_SSC)
        else:
            _resize_box_of_smaller(pixels_HWC, box, fraction, out_SSC)

    def try_box(self, content: bytes | BadImageError, box: Box, out_SSC: NDArray[np.uint8]) -> BadImageError | None:
        """`decode_box`, with the error as its result; what could not even be read is passed on."""
        if isinstance(content, BadImageError):
            return content
        try:
            self.decode_box(content, box, out_SSC)
        except BadImageError as error:
            return error
        return None


def fraction_for(box: Box, image_size: int) -> int:
    """The smallest 1/fraction of the size at which the box has at least the pixels that are asked for."""
    shorter = min(box.height, box.width)
    return next((fraction for fraction in jpeg.FRACTIONS if shorter >= fraction * image_size), 1)


def crop_and_resize(pixels_HWC: NDArray[np.uint8], box: Box, image_size: int) -> NDArray[np.uint8]:
    """The box, resized to uint8 (image_size, image_size, 3)."""
    out_SSC = np.empty((image_size, image_size, 3), dtype=np.uint8)
    resize_box(pixels_HWC, box, out_SSC)
    return out_SSC


def resize_box(pixels_HWC: NDArray[np.uint8], box: Box, out_SSC: NDArray[np.uint8]) -> None:
    """Write the box of the pixels, resized, to `out_SSC`.

    INTER_LINEAR looks at 2 x 2 pixels and so aliases when it shrinks by more than 2; INTER_AREA averages all of them.
    """
    assert box.top + box.height <= pixels_HWC.shape[0]
    assert box.left + box.width <= pixels_HWC.shape[1]
    cropped = pixels_HWC[box.top : box.top + box.height, box.left : box.left + box.width]
    size = len(out_SSC)
    shrinks = max(box.height, box.width) > 2 * size
    cv2.resize(cropped, (size, size), dst=out_SSC, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def use_one_thread_per_call() -> None:
    """Keep OpenCV from starting a pool of its own under each of the loader's threads."""
    cv2.setNumThreads(1)


def _resize_box_of_smaller(pixels_HWC: NDArray[np.uint8], box: Box, fraction: int, out_SSC: NDArray[np.uint8]) -> None:
    """Write the box of a picture that was decoded at 1/fraction of its size, resized, to `out_SSC`.

    The box's edges lie between pixels now; rounding them would move the picture by up to half a pixel of the result.
    """
    size = len(out_SSC)
    if max(box.height, box.width) > 2 * fraction * size:  # far from square: bilinear would alias along the longer side
        bottom, right = box.top + box.height, box.left + box.width
        top, left = box.top // fraction, box.left // fraction
        around = Box(top, left, -(-bottom // fraction) - top, -(-right // fraction) - left)
        resize_box(pixels_HWC, around, out_SSC)
        return
    across, down = box.width / fraction / size, box.height / fraction / size
    place_of_pixel = np.array(
        [
            [across, 0, box.left / fraction + across / 2 - 0.5],
            [0, down, box.top / fraction + down / 2 - 0.5],
        ]
    )
    cv2.warpAffine(
        pixels_HWC,
        place_of_pixel,
        (size, size),
        dst=out_SSC,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _turbo_header(data: bytes) -> jpeg.JpegHeader | None:
    """None: Pillow decodes it, or has the last word on what is wrong with it."""
    header = jpeg.read_header(data)
    if header is None or header.colours not in _TURBO_COLOURS:
        return None
    _within_limit(header.height, header.width)
    return header


def _within_limit(height: int, width: int) -> tuple[int, int]:
    if height * width > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels; more than {MAX_PIXELS} are refused")
    return height, width


def _check_box(box: Box, height: int, width: int) -> None:
    if box.top + box.height > height or box.left + box.width > width:
        raise BadImageError(f"{width} x {height} pixels are fewer than the index says; build the data set anew")


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (*_PILLOW_ERRORS, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = "not a known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BadImageError(f"{reason} ({len(data)} bytes)") from None
    _within_limit(image.height, image.width)
    if image.mode.startswith(("I", "F")):
        raise BadImageError(f"pixels of mode {image.mode!r}; 8 bits a channel are needed")
    return image


def _decode_by_pillow(data: bytes) -> NDArray[np.uint8]:
    with _open(data) as image:
        try:
            image.load()
            image.info.pop("transparency", None)  # left out anyhow; of a palette's, Pillow warns that it does so
            return np.asarray(image.convert("RGB"))
        except _PILLOW_ERRORS as error:
            raise BadImageError(f"damaged {image.format}: {error}") from None
