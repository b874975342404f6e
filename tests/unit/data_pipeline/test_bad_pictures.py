"""Every kind of bad picture, from the raw data set to the loader: listed, skipped, and the others come through."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_data import ClothingSet, build_clothing, encoded, photo

from data_pipeline.examples import open_split
from data_pipeline.loader import BadExample, Batch, Loader
from data_pipeline.manifest import Manifest
from data_pipeline.spec import DataSpec

PLACE = 4


def png_header(height: int, width: int) -> bytes:
    """A PNG of few bytes that claims a size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (chunk, end)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_header(height: int, width: int) -> bytes:
    """A small JPEG that claims a size."""
    data = bytearray(encoded(photo(1)))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def rotated_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    photo(7, 100, 140).save(file, format="JPEG", exif=exif)
    return file.getvalue()


def overwritten() -> bytes:
    data = bytearray(encoded(photo(5, 200, 200)))
    place = data.index(b"\xff\xda") + 300
    data[place : place + 40] = b"\xff\xd9" * 20
    return bytes(data)


SKIPPED_AT_BUILD = {
    "zero bytes": (b"", r"not a known image format \(0 bytes\)"),
    "text": (b"<html>404 Not Found</html>", r"not a known image format \(26 bytes\)"),
    "start of a JPEG": (b"\xff\xd8\xff\xe0", r"\(4 bytes\)"),
    "16-bit": (encoded(Image.fromarray(np.full((40, 40), 40_000, dtype=np.uint16)), "PNG"), "8 bits a channel"),
    "PNG bomb": (png_header(30_000, 30_000), "900000000 pixels"),
    "JPEG bomb": (jpeg_header(30_000, 30_000), "30000 x 30000 pixels; more than 64000000 are refused"),
}
QUARANTINED_BY_LOADER = {
    "cut JPEG": (encoded(photo(4))[:-400], "damaged JPEG: .*[Pp]remature end"),
    "cut PNG": (encoded(photo(4), "PNG")[:-400], "damaged PNG|truncated"),
    "overwritten": (overwritten(), "damaged JPEG"),
}
USED = {
    "CMYK": encoded(photo(4, 100, 140, "CMYK")),
    "grey": encoded(photo(4, 100, 140, "L")),
    "EXIF rotation": rotated_by_exif(),
    "PNG under a JPEG's name": encoded(photo(4, 100, 140), "PNG"),
}


def build_with(clothing: ClothingSet, content: bytes, out: Path) -> Manifest:
    """The data set with this content in place of one training picture's."""
    clothing.image(clothing.train[PLACE]).write_bytes(content)
    return build_clothing(clothing, out)


def load(manifest: Manifest, *, shuffle: bool) -> tuple[list[Batch], list[BadExample]]:
    spec = DataSpec(manifest="manifest.json", image_size=24, max_bad_fraction=0.05)
    table = open_split(manifest, "train")
    with Loader(table, spec, rank=0, world_size=1, seed=5, shuffle=shuffle, batch_size=5) as loader:
        return list(loader.epoch(1)), loader.quarantine


@pytest.mark.parametrize(("content", "reason"), SKIPPED_AT_BUILD.values(), ids=SKIPPED_AT_BUILD.keys())
def test_what_its_header_gives_away_is_listed_in_the_manifest(clothing, tmp_path, content, reason):
    manifest = build_with(clothing, content, tmp_path / "out")
    (skipped,) = manifest.skipped
    assert (skipped.split, skipped.ordinal, skipped.label) == ("train", PLACE, PLACE % 3)
    assert re.search(reason, skipped.reason)
    batches, quarantine = load(manifest, shuffle=True)
    assert sum(int(batch.valid_B.sum()) for batch in batches) == 19
    assert quarantine == []


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("content", "reason"), QUARANTINED_BY_LOADER.values(), ids=QUARANTINED_BY_LOADER.keys())
def test_what_only_decoding_shows_is_quarantined(clothing, tmp_path, content, reason, shuffle):
    manifest = build_with(clothing, content, tmp_path / "out")
    assert manifest.skipped == ()
    batches, (bad,) = load(manifest, shuffle=shuffle)
    assert bad.example_id.endswith(f"{PLACE},{1000 + PLACE}")
    assert bad.shard.startswith("train-")
    assert re.search(reason, bad.reason)
    assert len(batches) == 4
    assert sum(int(batch.valid_B.sum()) for batch in batches) == 19


@pytest.mark.parametrize("content", USED.values(), ids=USED.keys())
def test_unusual_pictures_are_used_as_they_are_stored(clothing, tmp_path, content):
    manifest = build_with(clothing, content, tmp_path / "out")
    assert manifest.skipped == ()
    table = open_split(manifest, "train")
    row = next(row for row, name in enumerate(table.example_ids) if name.endswith(f"{PLACE},{1000 + PLACE}"))
    assert (table.heights[row], table.widths[row]) == (100, 140)
    batches, quarantine = load(manifest, shuffle=False)
    assert quarantine == []
    assert all(batch.valid_B.all() for batch in batches)
    picture = batches[row // 5].images_BHWC[row % 5].float()
    assert picture.std() > 10
    if content == USED["grey"]:
        assert (picture == picture[:, :, :1]).all()
