"""Small data sets of real pictures: crops of scikit-learn's two photographs in Clothing1M's layout, and its digits."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.manifest import Manifest
from data_pipeline.sources.clothing1m import Clothing1M
from data_pipeline.sources.digits import Digits


def photo(number: int, height: int = 120, width: int = 90, mode: str = "RGB") -> Image.Image:
    """A different part of a real photograph for each number."""
    pixels = load_sample_image("china.jpg" if number % 2 else "flower.jpg")
    top, left = 11 * number % (pixels.shape[0] - height), 17 * number % (pixels.shape[1] - width)
    return Image.fromarray(np.ascontiguousarray(pixels[top : top + height, left : left + width])).convert(mode)


def encoded(image: Image.Image, file_format: str = "JPEG") -> bytes:
    """The picture as a file's content."""
    file = io.BytesIO()
    image.save(file, format=file_format)
    return file.getvalue()


@dataclass
class ClothingSet:
    """A folder in Clothing1M's layout, and what was put there."""

    root: Path
    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    noisy: dict[str, int] = field(default_factory=dict)
    clean: dict[str, int] = field(default_factory=dict)

    def image(self, key: str) -> Path:
        return self.root / key

    def write_lists(self) -> None:
        """Key lists and labels as they stand in this object."""
        (self.root / "category_names_eng.txt").write_text("T-Shirt\nShirt\nKnitwear\n")
        labelled = {"noisy_label_kv.txt": self.noisy, "clean_label_kv.txt": self.clean}
        for name, labels in labelled.items():
            (self.root / name).write_text("".join(f"{key} {label}\n" for key, label in labels.items()))
        lists = {
            "noisy_train": self.train,
            "clean_train": self.train[:3],
            "clean_val": self.val,
            "clean_test": self.test,
        }
        for name, keys in lists.items():
            (self.root / f"{name}_key_list.txt").write_text("".join(f"{key}\n" for key in keys))


def make_clothing(root: Path) -> ClothingSet:
    """20 training pictures (3 with a clean label too), 2 keys that are in val and test as well, 5 val, 6 test."""
    made = ClothingSet(root)
    for number in range(31):
        key = f"images/{number % 10}/{number % 7:02d}/{number},{1000 + number}.jpg"
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(encoded(photo(number, 100 + number, 140 - number)))
        split = made.train if number < 20 else made.val if number < 25 else made.test
        split.append(key)
        if number < 20:
            made.noisy[key] = number % 3
        if number < 3 or number >= 20:
            made.clean[key] = (number + 1) % 3
    for key in (made.val[1], made.test[2]):
        made.train.insert(5, key)
        made.noisy[key] = 0
    made.write_lists()
    return made


def make_tar(folder: Path, tar: Path, prefix: str = "") -> Path:
    """An uncompressed tar of the folder."""
    with tarfile.open(tar, "w") as file:
        file.add(folder, arcname=f"{prefix}{folder.name}")
    return tar


def idx_file(array: np.ndarray) -> bytes:
    """The array of bytes as an idx file, by the format's definition."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_arrays() -> dict[str, np.ndarray]:
    """What MNIST's four files would hold: 40 and 12 pictures of noise, 6 x 5, labels 0 to 9 in turn."""
    random = np.random.default_rng(7)
    return {
        "train-images-idx3-ubyte": random.integers(0, 256, (40, 6, 5), dtype=np.uint8),
        "train-labels-idx1-ubyte": (np.arange(40) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": random.integers(0, 256, (12, 6, 5), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": ((np.arange(12) * 3) % 10).astype(np.uint8),
    }


def make_idx_folder(folder: Path) -> Path:
    """Plain train files, gzipped test files."""
    folder.mkdir()
    for name, array in idx_arrays().items():
        if name.startswith("t10k"):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_file(array)))
        else:
            (folder / name).write_bytes(idx_file(array))
    return folder


def build_clothing(made: ClothingSet, out: Path, options: BuildOptions | None = None) -> Manifest:
    """Build it with 8 examples a shard, whatever cannot be read."""
    with Clothing1M(made.root) as source:
        return build(source, out, options or BuildOptions(shard_size=8, max_bad_fraction=1)).manifest


def build_digits(out: Path, options: BuildOptions | None = None) -> Manifest:
    """Build scikit-learn's digits."""
    return build(Digits(), out, options or BuildOptions(shard_size=500)).manifest
