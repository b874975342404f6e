"""MNIST and the sets made in its form (Fashion-MNIST, KMNIST, …): idx files, gzipped or plain.

    {train,t10k}-images-idx3-ubyte[.gz]     big-endian 0x00000803, number, height, width, then one byte a pixel
    {train,t10k}-labels-idx1-ubyte[.gz]     big-endian 0x00000801, number, then one byte a label

(LeCun et al. 1998; some copies write `.idx3-ubyte`.) train and test as they are distributed; `num_val` training
examples, drawn by `val_seed`, become val. Pictures become greyscale PNG files, pixel for pixel.

example_id: where it stands in the original files: `train-00012` (also where it is in val), `test-00034`.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.sources.base import SourceExample, SplitName
from data_pipeline.sources.hold_out import hold_out

DIGIT_CLASSES = tuple(str(digit) for digit in range(10))
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_Part = Literal["train", "test"]
_FILE_PREFIX: dict[_Part, str] = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08
"""idx's code of the element type, third byte of the magic number; the fourth counts the dimensions."""


class Mnist:
    """A data set of idx files in a folder; all is read and checked at once (47 MB for 60,000 pictures of 28 x 28)."""

    def __init__(
        self,
        path: str | Path,
        name: str = "mnist",
        classes: Sequence[str] = DIGIT_CLASSES,
        *,
        num_val: int = 0,
        val_seed: int = 0,
    ) -> None:
        self.name = name
        self.classes = tuple(classes)
        folder = Path(path)
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder")
        self._images = {part: _read_images(folder, part) for part in _FILE_PREFIX}
        self._labels = {part: _read_labels(folder, part, len(self.classes)) for part in _FILE_PREFIX}
        for part in _FILE_PREFIX:
            num_images, num_labels = len(self._images[part]), len(self._labels[part])
            if num_images != num_labels:
                raise ValueError(f"{folder}: {part} has {num_images:,} pictures, but {num_labels:,} labels")
        train, val = hold_out(len(self._labels["train"]), num_val, val_seed)
        test = list(range(len(self._labels["test"])))
        self._rows: dict[SplitName, tuple[_Part, list[int]]] = {
            "train": ("train", train), "val": ("train", val), "test": ("test", test),
        }  # fmt: skip
        self.notes = (f"val: {num_val:,} training examples drawn by seed {val_seed}",) if num_val else ()

    def examples(self) -> Iterator[SourceExample]:
        """train, val, test; within each in the order of the files."""
        for split, (part, rows) in self._rows.items():
            for row in rows:
                label = int(self._labels[part][row])
                yield SourceExample(f"{part}-{row:05d}", str(row), "png", split, label, label)

    def read(self, example: SourceExample) -> bytes:
        """The picture as a greyscale PNG."""
        part: _Part = "test" if example.split == "test" else "train"
        file = io.BytesIO()
        Image.fromarray(self._images[part][int(example.key)]).save(file, format="PNG")
        return file.getvalue()


def _read_images(folder: Path, part: _Part) -> NDArray[np.uint8]:
    """uint8 (N, H, W)."""
    path = _find(folder, f"{_FILE_PREFIX[part]}-images", num_dims=3)
    images_NHW = _read_idx(path, num_dims=3)
    if not images_NHW.size:
        raise ValueError(f"{path}: {' x '.join(map(str, images_NHW.shape))} holds no pixels")
    return images_NHW


def _read_labels(folder: Path, part: _Part, num_classes: int) -> NDArray[np.uint8]:
    """uint8 (N,), each below `num_classes`."""
    path = _find(folder, f"{_FILE_PREFIX[part]}-labels", num_dims=1)
    labels_N = _read_idx(path, num_dims=1)
    if labels_N.size and int(labels_N.max()) >= num_classes:
        raise ValueError(f"{path}: label {labels_N.max()} must be 0 to {num_classes - 1}: {num_classes} classes")
    return labels_N


def _find(folder: Path, stem: str, *, num_dims: int) -> Path:
    names = [f"{stem}{mark}idx{num_dims}-ubyte{suffix}" for mark in "-." for suffix in ("", ".gz")]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder}: there is no {names[0]}, gzipped (.gz) or plain")
    return found[0]


def _read_idx(path: Path, *, num_dims: int) -> NDArray[np.uint8]:
    """The array of an idx file of bytes; ValueError if it is anything else or not whole."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: is no whole gzip file: {error}") from None
    header_bytes = 4 * (1 + num_dims)
    magic = bytes((0, 0, _UNSIGNED_BYTE, num_dims))
    if data[:4] != magic:
        raise ValueError(f"{path}: begins with 0x{data[:4].hex()}, must be 0x{magic.hex()}: idx, {num_dims}-d, bytes")
    if len(data) < header_bytes:
        raise ValueError(f"{path}: ends inside its header, after {len(data)} of {header_bytes} bytes")
    shape = struct.unpack(f">{num_dims}I", data[4:header_bytes])
    expected = int(np.prod(shape, dtype=object))
    if len(data) - header_bytes != expected:
        raise ValueError(
            f"{path}: holds {len(data) - header_bytes:,} bytes of data, its header says"
            f" {' x '.join(map(str, shape))} = {expected:,}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header_bytes).reshape(shape)
