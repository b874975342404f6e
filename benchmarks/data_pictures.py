"""The pictures that `benchmarks.data` reads, in every form that one of its contestants wants."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image
from streaming import MDSWriter

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.manifest import Manifest
from data_pipeline.sources.base import Source, SourceExample
from data_pipeline.sources.clothing1m import Clothing1M

SHARD_SIZE = 100
PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "clothing-photos.tar"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A JPEG file with its label."""

    data: bytes
    label: int


class PictureSource:
    """The pictures as a raw data set: all of them for training."""

    name = "benchmark"
    notes: tuple[str, ...] = ()

    def __init__(self, pictures: list[Picture], classes: tuple[str, ...]) -> None:
        self._pictures, self.classes = pictures, classes

    def examples(self) -> Iterator[SourceExample]:
        """In the order given."""
        for place, picture in enumerate(self._pictures):
            yield SourceExample(f"{place:06d}", str(place), "jpg", "train", picture.label, None)

    def read(self, example: SourceExample) -> bytes:
        """The file."""
        return self._pictures[int(example.key)].data


def clothing_photos(path: Path, count: int) -> list[Picture]:
    """The first JPEG training photographs of a data set in Clothing1M's layout."""
    pictures: list[Picture] = []
    with Clothing1M(path) as source:
        for example in source.examples():
            if len(pictures) == count or example.split != "train":
                break
            assert example.given_label is not None, "training photographs have noisy labels"
            pictures.append(Picture(source.read(example), example.given_label))
    return pictures


def parts_of_sample_photos(count: int) -> list[Picture]:
    """Where no data set is at hand: parts of scikit-learn's two photographs, 256 to 420 px."""
    random = np.random.default_rng(0)
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    pictures = []
    for number in range(count):
        photo = photos[number % 2]
        height, width = int(random.integers(256, 420)), int(random.integers(256, 420))
        top, left = int(random.integers(photo.shape[0] - height + 1)), int(random.integers(photo.shape[1] - width + 1))
        pictures.append(Picture(as_jpeg(photo[top : top + height, left : left + width]), number % 14))
    return pictures


def mosaics(pictures: list[Picture], count: int, height: int, width: int) -> list[bytes]:
    """Large pictures with detail in every pixel: the given ones side by side, cut to 256 x 256."""
    across, down = -(-width // 256), -(-height // 256)
    made = []
    for number in range(count):
        tiles = [
            np.asarray(Image.open(io.BytesIO(pictures[(number * 7 + place) % len(pictures)].data)).convert("RGB"))
            for place in range(across * down)
        ]
        tiles = [np.resize(tile[:256, :256], (256, 256, 3)) for tile in tiles]
        rows = [np.hstack(tiles[row * across : (row + 1) * across]) for row in range(down)]
        made.append(as_jpeg(np.vstack(rows)[:height, :width]))
    return made


def as_jpeg(pixels_HWC: np.ndarray) -> bytes:
    """Quality 90, colour at half the resolution: what cameras and the web mostly write."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_HWC)).save(file, format="JPEG", quality=90)
    return file.getvalue()


def write_shards(pictures: list[Picture], out: Path) -> Manifest:
    """Our shards, which are webdataset's too."""
    classes = tuple(f"class-{label:02d}" for label in range(max(picture.label for picture in pictures) + 1))
    source: Source = PictureSource(pictures, classes)
    return build(source, out, BuildOptions(shard_size=SHARD_SIZE)).manifest


def write_folder(pictures: list[Picture], out: Path) -> None:
    """A folder a class, as torchvision's ImageFolder reads them."""
    for place, picture in enumerate(pictures):
        folder = out / f"class-{picture.label:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{place:06d}.jpg").write_bytes(picture.data)


def write_mds(pictures: list[Picture], folder: Path, out: Path) -> None:
    """MosaicML streaming's shards. It keeps a JPEG's bytes as they are if Pillow opened it from a file."""
    with MDSWriter(out=str(out), columns={"image": "jpeg", "label": "int"}) as writer:
        for place, picture in enumerate(pictures):
            path = folder / f"class-{picture.label:02d}" / f"{place:06d}.jpg"
            with Image.open(path) as image:
                writer.write({"image": image, "label": picture.label})
