"""MNIST and the sets made in its form (Fashion-MNIST, KMNIST, …): idx files, gzipped or plain.

    {train,t10k}-images-idx3-ubyte[.gz]     big-endian 0x00000803, number, height, width, then one byte a pixel
    {train,t10k}-labels-idx1-ubyte[.gz]     big-endian 0x00000801, number, then one byte a label

(LeCun et al. 1998; some copies write `.idx3-ubyte`.) train and test as they are distributed.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.sources.arrays import ArraySource, Part, PartName

DIGIT_CLASSES = tuple(str(digit) for digit in range(10))
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_FILE_PREFIX: dict[PartName, str] = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08
"""idx's code of the element type, third byte of the magic number; the fourth counts the dimensions."""


class Mnist(ArraySource):
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
        folder = Path(path)
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder")
        parts = {
            part: Part(_read_images(folder, part), _read_labels(folder, part, len(classes))) for part in _FILE_PREFIX
        }
        for part, (pictures, labels_N) in parts.items():
            if len(pictures) != len(labels_N):
                raise ValueError(f"{folder}: {part} has {len(pictures):,} pictures, but {len(labels_N):,} labels")
        super().__init__(name, tuple(classes), parts, num_val=num_val, val_seed=val_seed)


def _read_images(folder: Path, part: PartName) -> NDArray[np.uint8]:
    """uint8 (N, H, W)."""
    path = _find(folder, f"{_FILE_PREFIX[part]}-images", num_dims=3)
    images_NHW = _read_idx(path, num_dims=3)
    if not images_NHW.size:
        raise ValueError(f"{path}: {' x '.join(map(str, images_NHW.shape))} holds no pixels")
    return images_NHW


def _read_labels(folder: Path, part: PartName, num_classes: int) -> NDArray[np.uint8]:
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
