"""Pictures of all kinds, whole and damaged, against Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from sample_data import encoded, photo

from data_pipeline.errors import BadImageError
from data_pipeline.pictures.crop import Box, centre_box, draws_for, random_box
from data_pipeline.pictures.decode import MAX_PIXELS, BoxDecoder, crop_and_resize, decode, fraction_for, image_shape


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [
        ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"),
        ("1", "PNG"), ("LA", "PNG"),
    ],
)  # fmt: skip
def test_every_kind_of_picture_decodes_as_pillow_decodes_it(mode, file_format):
    data = encoded(photo(3, mode=mode), file_format)
    assert image_shape(data) == (120, 90)
    pixels = decode(data)
    assert pixels.shape == (120, 90, 3)
    assert pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - by_pillow(data))
    assert difference.mean() < 0.5
    if file_format == "PNG":
        assert difference.max() == 0


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 256, 16))])
def test_transparency_is_ignored(transparency):
    picture, file = photo(3).quantize(16), io.BytesIO()
    picture.save(file, format="PNG", transparency=transparency)
    np.testing.assert_array_equal(decode(file.getvalue()), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_picture(file_format):
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    file = io.BytesIO()
    pictures[0].save(file, format=file_format, save_all=True, append_images=pictures[1:])
    data = file.getvalue()
    assert image_shape(data) == (30, 40)
    assert np.abs(decode(data).astype(int) - np.asarray(pictures[0])).max() <= 3


@pytest.mark.parametrize(("colour_type", "num_channels"), [(2, 3), (6, 4)])
def test_sixteen_bits_of_colour_are_rounded_down_to_eight(colour_type, num_channels):
    values = (300 * np.arange(6 * 7 * num_channels)).reshape(6, 7, num_channels).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 7, 6, 16, colour_type, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    np.testing.assert_array_equal(decode(data), values[:, :, :3] >> 8)


def test_progressive_jpeg_decodes():
    file = io.BytesIO()
    photo(1).save(file, format="JPEG", progressive=True)
    assert np.abs(decode(file.getvalue()).astype(int) - by_pillow(file.getvalue())).mean() < 0.5


def test_orientation_in_exif_is_ignored_on_purpose():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    for file_format in ("JPEG", "PNG"):
        file = io.BytesIO()
        photo(1).save(file, format=file_format, exif=exif)
        assert decode(file.getvalue()).shape == (120, 90, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.98])
def test_a_cut_file_is_an_error(file_format, share):
    data = encoded(photo(5), file_format)
    with pytest.raises(BadImageError):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_cut_before_its_end_is_named_so(mode):
    data = encoded(photo(5, mode=mode))
    with pytest.raises(BadImageError, match=r"damaged JPEG|truncated"):
        decode(data[: len(data) // 2])


def test_overwritten_bytes_inside_a_jpeg_are_an_error():
    data = bytearray(encoded(photo(5, 400, 400)))
    middle = len(data) // 2
    data[middle : middle + 400] = b"\xff\xd9" * 200
    with pytest.raises(BadImageError, match="damaged JPEG"):
        decode(bytes(data))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"<html>", bytes(1000)])
def test_what_is_no_picture_is_an_error(data):
    for function in (decode, image_shape):
        with pytest.raises(BadImageError, match=f"{len(data)} bytes"):
            function(data)


def test_pictures_that_would_fill_the_memory_are_refused_before_decoding():
    side = int(MAX_PIXELS**0.5) + 1
    data = encoded(Image.new("1", (side, side)), "PNG")
    assert len(data) < 50_000
    for function in (decode, image_shape):
        with pytest.raises(BadImageError, match=f"more than {MAX_PIXELS} are refused"):
            function(data)
    header = bytearray(encoded(photo(1)))
    start = header.index(b"\xff\xc0") + 5  # height and width in the JPEG's frame header
    header[start : start + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(BadImageError, match="4294836225 pixels"):
        decode(bytes(header))


def test_sixteen_bits_of_grey_are_refused_not_clipped():
    data = encoded(Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)), "PNG")
    for function in (decode, image_shape):  # at build already
        with pytest.raises(BadImageError, match="mode 'I;16'; 8 bits a channel are needed"):
            function(data)


def by_box(data: bytes, box: Box, size: int, decoder: BoxDecoder | None = None) -> np.ndarray:
    out = np.full((size, size, 3), 77, dtype=np.uint8)
    (decoder or BoxDecoder()).decode_box(data, box, out)
    return out


def by_pillows_box(data: bytes, box: Box, size: int) -> np.ndarray:
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=corners))


def mean_error(data: bytes, box: Box, size: int) -> float:
    return float(np.abs(by_box(data, box, size).astype(int) - by_pillows_box(data, box, size)).mean())


@pytest.mark.parametrize(
    ("mode", "file_format"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("L", "PNG")]
)
def test_a_box_is_the_crop_of_the_whole_picture(mode, file_format):
    data = encoded(photo(3, 200, 150, mode), file_format)
    decoder = BoxDecoder()
    for box in (Box(0, 0, 200, 150), Box(0, 0, 1, 1), Box(13, 7, 70, 60), Box(180, 100, 20, 50)):
        np.testing.assert_array_equal(by_box(data, box, 100, decoder), crop_and_resize(decode(data), box, 100))


def test_one_picture_leaves_nothing_in_the_next():
    decoder, small, large = BoxDecoder(), encoded(photo(1, 60, 60)), encoded(photo(2, 300, 300))
    expected = by_box(small, Box(0, 0, 60, 60), 32)
    by_box(large, Box(0, 0, 300, 300), 32, decoder)
    np.testing.assert_array_equal(by_box(small, Box(0, 0, 60, 60), 32, decoder), expected)


@pytest.mark.parametrize(
    ("height", "width", "fraction"), [(447, 900, 1), (448, 448, 2), (895, 900, 2), (900, 896, 4), (1792, 2000, 8)]
)
def test_a_fraction_leaves_as_many_pixels_as_are_asked_for(height, width, fraction):
    assert fraction_for(Box(0, 0, height, width), 224) == fraction


@pytest.mark.parametrize(("size", "bound"), [(128, 2), (96, 2.5), (64, 2.8), (48, 3.2), (24, 4)])
def test_crops_of_photographs_are_close_to_pillows_antialiased_ones(size, bound):
    """Bounds that plain bilinear crops (2.5, 3.7, 5.6, 7.2, 11.6) break, and crops half a pixel off their place."""
    data = encoded(photo(2, 400, 500))
    boxes = [random_box(draws_for(0, epoch, "example"), 400, 500) for epoch in range(20)]
    boxes.append(centre_box(400, 500, size))
    assert np.mean([mean_error(data, box, size) for box in boxes]) < bound


@pytest.mark.parametrize("side", [160, 320, 640, 1280])
def test_large_pictures_do_not_alias(side):
    """Stripes too fine for the result are grey in it, however far it is shrunk, in both directions."""
    stripes = np.zeros((side, side, 3), dtype=np.uint8)
    stripes[::2] = 255
    for pixels in (stripes, stripes.transpose(1, 0, 2)):
        data = encoded(Image.fromarray(np.ascontiguousarray(pixels)))
        result = by_box(data, Box(3, 5, side - 9, side - 7), 32)
        assert np.abs(result.astype(int) - 127).max() <= 16


def test_far_from_square_boxes_do_not_alias_along_the_longer_side():
    board = (np.indices((128, 1600)).sum(axis=0) % 2 * 255).astype(np.uint8)
    data = encoded(Image.fromarray(board).convert("RGB"))
    assert fraction_for(Box(0, 0, 128, 1600), 32) == 4
    assert np.abs(by_box(data, Box(0, 0, 128, 1600), 32).astype(int) - 127).max() <= 16


def test_a_box_beyond_the_picture_is_an_error():
    for file_format in ("JPEG", "PNG"):
        data = encoded(photo(1), file_format)
        for box in (Box(100, 0, 21, 90), Box(0, 60, 120, 31)):
            with pytest.raises(BadImageError, match="90 x 120 pixels are fewer than the index says"):
                by_box(data, box, 32)


def test_shrinking_does_not_alias():
    """A chessboard of single pixels is grey from afar; sampling 2 x 2 of each 5 x 5 pixels would see patterns."""
    board = np.repeat((np.indices((320, 320)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    small = crop_and_resize(board, Box(0, 0, 320, 320), 64)
    assert np.abs(small.astype(int) - 127).max() <= 12


def test_crop_takes_the_box_and_nothing_else():
    pixels = decode(encoded(photo(2), "PNG"))
    np.testing.assert_array_equal(crop_and_resize(pixels, Box(7, 11, 32, 32), 32), pixels[7:39, 11:43])


@pytest.mark.parametrize("size", [96, 60, 48, 24])
def test_resize_is_close_to_pillow(size):
    pixels = decode(encoded(photo(2, 192, 192), "PNG"))
    ours = crop_and_resize(pixels, Box(0, 0, 192, 192), size)
    theirs = np.asarray(
        Image.fromarray(pixels).resize(
            (size, size), Image.Resampling.BOX if 192 % size == 0 else Image.Resampling.BILINEAR
        )
    )
    assert np.abs(ours.astype(int) - theirs).mean() < 5
