"""Image bytes -> uint8 RGB pixels. JPEG by simplejpeg (libjpeg-turbo), all else by Pillow; resized by OpenCV.

EXIF orientation is ignored by both decoders, on purpose: a picture is its stored pixels, as in torchvision's
ImageFolder. Damage that libjpeg could paper over (a truncated file, a broken Huffman code) is an error here, not a grey
area in the picture.
"""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data_pipeline.crop import Box
from data_pipeline.errors import BadImageError

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before decoding: a few bytes can claim to be a picture that fills the memory."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # Pillow knows formats that start other programs
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error)
_JPEG_MAGIC = b"\xff\xd8\xff"
_TURBO_COLOURS = ("YCbCr", "RGB", "Gray")  # CMYK and YCCK: Pillow, which knows Adobe's inverted inks


def image_shape(data: bytes) -> tuple[int, int]:
    """(height, width) from the header alone; BadImageError if it is no picture or too large."""
    header = _turbo_header(data)
    if header is None:
        with _open(data) as image:
            width, height = image.size
    else:
        height, width, _ = header
    return _within_limit(height, width)


def decode(data: bytes) -> NDArray[np.uint8]:
    """The whole picture: uint8 (height, width, 3), RGB."""
    header = _turbo_header(data)
    if header is None or header[2] not in _TURBO_COLOURS:
        return _decode_by_pillow(data)
    _within_limit(header[0], header[1])
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError as error:
        raise BadImageError(f"damaged JPEG: {error}") from None
    return pixels


def crop_and_resize(pixels_HWC: NDArray[np.uint8], box: Box, image_size: int) -> NDArray[np.uint8]:
    """The box, resized to uint8 (image_size, image_size, 3).

    INTER_LINEAR looks at 2 x 2 pixels and so aliases when it shrinks by more than 2; INTER_AREA averages all of them.
    """
    assert box.top + box.height <= pixels_HWC.shape[0]
    assert box.left + box.width <= pixels_HWC.shape[1]
    cropped = pixels_HWC[box.top : box.top + box.height, box.left : box.left + box.width]
    shrinks = max(box.height, box.width) > 2 * image_size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cropped, (image_size, image_size), interpolation=interpolation), dtype=np.uint8)


def use_one_thread_per_call() -> None:
    """Keep OpenCV from starting a pool of its own under each of the loader's threads."""
    cv2.setNumThreads(1)


def _turbo_header(data: bytes) -> tuple[int, int, str] | None:
    """(height, width, colour space), or None when libjpeg-turbo cannot tell: Pillow then has the last word."""
    if not data.startswith(_JPEG_MAGIC):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError:
        return None
    return int(height), int(width), str(colours)


def _within_limit(height: int, width: int) -> tuple[int, int]:
    if height * width > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels; more than {MAX_PIXELS} are refused")
    return height, width


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except (*_PILLOW_ERRORS, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = "not a known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BadImageError(f"{reason} ({len(data)} bytes)") from None


def _decode_by_pillow(data: bytes) -> NDArray[np.uint8]:
    with _open(data) as image:
        _within_limit(image.height, image.width)
        if image.mode.startswith(("I", "F")):
            raise BadImageError(f"pixels of mode {image.mode!r}; 8 bits a channel are needed")
        try:
            return np.asarray(image.convert("RGB"))
        except _PILLOW_ERRORS as error:
            raise BadImageError(f"damaged {image.format}: {error}") from None
