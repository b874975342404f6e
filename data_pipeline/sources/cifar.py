"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the python and the binary form, unpacked, and sets made in either.

    CIFAR-10    python   data_batch_1 … data_batch_5, test_batch, batches.meta
                binary   data_batch_1.bin … data_batch_5.bin, test_batch.bin, batches.meta.txt
    CIFAR-100   python   train, test, meta
                binary   train.bin, test.bin, fine_label_names.txt, coarse_label_names.txt

A picture is 3 x 32 x 32 bytes: red, green, blue, each row by row. In the binary form a record is one label byte (two in
CIFAR-100: coarse, then fine) and the picture. The python form is a pickle, which is read and never unpickled.
Train and test as they are distributed, data_batch_1 first: the order in which Co-teaching+ draws its noise.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.sources.arrays import ArraySource, Part, PartName
from data_pipeline.sources.plain_pickle import UnexpectedPickleError, load_plain

SIDE = 32
_PICTURE_BYTES = 3 * SIDE * SIDE

Labels = Literal["fine", "coarse"]


@dataclasses.dataclass(frozen=True)
class _Form:
    """How one of the four distributions is laid out."""

    name: str
    """Of the data set."""
    files: dict[PartName, tuple[str, ...]]
    names: dict[Labels, str]
    """Labels -> the text file of class names; in the python form the entry of the file `meta`."""
    labels: dict[Labels, str | int]
    """Labels -> the entry of a batch; in the binary form the label's place in the record."""
    meta: str | None = None
    """The python form's file of class names."""

    @property
    def all_files(self) -> tuple[str, ...]:
        return (*self.files["train"], *self.files["test"], *((self.meta,) if self.meta else self.names.values()))


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_FORMS = (
    _Form(
        "cifar10", {"train": _BATCHES, "test": ("test_batch",)},
        {"fine": "label_names"}, {"fine": "labels"}, "batches.meta",
    ),
    _Form(
        "cifar10", {"train": tuple(f"{batch}.bin" for batch in _BATCHES), "test": ("test_batch.bin",)},
        {"fine": "batches.meta.txt"}, {"fine": 0},
    ),
    _Form(
        "cifar100", {"train": ("train",), "test": ("test",)},
        {"fine": "fine_label_names", "coarse": "coarse_label_names"},
        {"fine": "fine_labels", "coarse": "coarse_labels"}, "meta",
    ),
    _Form(
        "cifar100", {"train": ("train.bin",), "test": ("test.bin",)},
        {"fine": "fine_label_names.txt", "coarse": "coarse_label_names.txt"}, {"fine": 1, "coarse": 0},
    ),
)  # fmt: skip


class Cifar(ArraySource):
    """CIFAR-10 or CIFAR-100 out of a folder: whichever, in whichever form, lies there. All is read and checked at once
    (184 MB of pixels)."""

    def __init__(
        self,
        path: str | Path,
        name: str | None = None,
        *,
        labels: Labels = "fine",
        num_val: int = 0,
        val_seed: int = 0,
    ) -> None:
        folder = Path(path)
        form = _form_of(folder)
        if labels not in form.labels:
            raise ValueError(f"labels {labels!r}: {folder} holds {form.name}, which has fine labels only")
        classes = _class_names(folder, form, labels)
        parts = {part: _read_part(folder, form, part, labels) for part in form.files}
        for part, (_, numbers) in parts.items():
            if numbers.size and int(numbers.max()) >= len(classes):
                raise ValueError(f"{folder}: {part} has label {numbers.max()}, must be 0 to {len(classes) - 1}")
        super().__init__(name or form.name, classes, parts, num_val=num_val, val_seed=val_seed)


def _form_of(folder: Path) -> _Form:
    """The form whose files lie in the folder; if none is complete, the error names what is missing of the closest."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    missing = [[file for file in form.all_files if not (folder / file).is_file()] for form in _FORMS]
    best = min(range(len(_FORMS)), key=lambda number: len(missing[number]) / len(_FORMS[number].all_files))
    if not missing[best]:
        return _FORMS[best]
    if len(missing[best]) == len(_FORMS[best].all_files):
        raise ValueError(f"{folder} holds none of CIFAR-10's or CIFAR-100's files, in python or binary form")
    raise ValueError(f"{folder} is not all of {_FORMS[best].name}: it lacks {', '.join(missing[best])}")


def _class_names(folder: Path, form: _Form, labels: Labels) -> tuple[str, ...]:
    if form.meta:
        path = folder / form.meta
        names = _entry(path, _load(path), form.names[labels], list)
    else:
        path = folder / form.names[labels]
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    classes = tuple(name for name in names if isinstance(name, str))
    if len(classes) != len(names) or len(classes) < 2:
        raise ValueError(f"{path}: {form.names[labels]} must hold at least two class names")
    return classes


def _read_part(folder: Path, form: _Form, part: PartName, labels: Labels) -> Part:
    read = _read_batch if form.meta else _read_records
    batches = [read(folder / file, form, labels) for file in form.files[part]]
    pixels_NCHW = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, SIDE, SIDE)
    return Part(pixels_NCHW.transpose(0, 2, 3, 1), np.concatenate([numbers for _, numbers in batches]))


def _read_records(path: Path, form: _Form, labels: Labels) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A file of the binary form: (pixels (N, 3072), labels (N,))."""
    data = np.fromfile(path, dtype=np.uint8)
    record_bytes = len(form.labels) + _PICTURE_BYTES
    if not len(data) or len(data) % record_bytes:
        raise ValueError(f"{path}: {len(data):,} bytes, must be a multiple of {record_bytes:,}, the size of a record")
    records = data.reshape(-1, record_bytes)
    place = form.labels[labels]
    assert isinstance(place, int)
    return records[:, len(form.labels) :], records[:, place].astype(np.int64)


def _read_batch(path: Path, form: _Form, labels: Labels) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A file of the python form: (pixels (N, 3072), labels (N,))."""
    batch = _load(path)
    pixels = _entry(path, batch, "data", np.ndarray)
    numbers = _entry(path, batch, str(form.labels[labels]), list)
    if pixels.shape != (len(numbers), _PICTURE_BYTES) or not len(numbers):
        raise ValueError(f"{path}: {len(numbers):,} labels and pixels of {pixels.shape}, must be N and (N, 3072)")
    if not all(isinstance(number, int) and 0 <= number < 2**31 for number in numbers):
        raise ValueError(f"{path}: a label is no number from 0 up")
    return pixels, np.array(numbers, dtype=np.int64)


def _load(path: Path) -> dict[str, object]:
    try:
        return load_plain(path.read_bytes())
    except UnexpectedPickleError as error:
        raise ValueError(f"{path}: {error}") from None


_Kind = TypeVar("_Kind")


def _entry(path: Path, entries: dict[str, object], name: str, kind: type[_Kind]) -> _Kind:
    """An entry of a file, which must be of this kind."""
    value = entries.get(name)
    if not isinstance(value, kind):
        raise ValueError(f"{path}: has no {name!r} that is a {kind.__name__}")
    return value
