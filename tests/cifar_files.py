"""Small sets in CIFAR's four forms, the python form as Python 2 wrote it: opcode by opcode."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

CLASSES = ("airplane", "cat", "dog")
COARSE = ("machine", "animal")
NUM_BATCH, NUM_TEST = 7, 5


def pixels(seed: int, count: int) -> np.ndarray:
    """uint8 (count, 3072)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def fine(seed: int, count: int) -> list[int]:
    return np.random.default_rng(100 + seed).integers(0, 3, count).tolist()


def coarse(labels: list[int]) -> list[int]:
    return [min(label, 1) for label in labels]


def python2_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    short = len(data) < 256
    return (b"U" + bytes((len(data),)) if short else b"T" + struct.pack("<i", len(data))) + data


def python2_list(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def python2_numbers(numbers: list[int]) -> bytes:
    return python2_list([b"K" + bytes((number,)) for number in numbers])


def python2_array(array: np.ndarray) -> bytes:
    """As NumPy reduced a 2-d array of uint8: reconstruct, then (1, shape, dtype, Fortran, bytes)."""
    rows, columns = array.shape
    return b"".join(
        (
            b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85",
            python2_string("b"),
            b"\x87Rq\x09(K\x01M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86",
            b"cnumpy\ndtype\nq\x0a" + python2_string("u1") + b"K\x00K\x01\x87Rq\x0b(K\x03" + python2_string("|"),
            b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            python2_string(array.tobytes()),
            b"tb",
        )
    )


def python2_dict(entries: dict[str, bytes]) -> bytes:
    """A protocol 2 pickle; the first key is remembered too, as Python 2 did."""
    items = b"".join(python2_string(key) + b"q\x02" + value for key, value in entries.items())
    return b"\x80\x02}q\x01(" + items + b"u."


def make_cifar10_python(folder: Path) -> Path:
    folder.mkdir()
    for number, (name, count) in enumerate(_batches().items()):
        batch = {
            "batch_label": python2_string(name),
            "labels": python2_numbers(fine(number, count)),
            "data": python2_array(pixels(number, count)),
            "filenames": python2_list([python2_string(f"{row}.png") for row in range(count)]),
        }
        (folder / name).write_bytes(python2_dict(batch))
    names = python2_list([python2_string(name) for name in CLASSES])
    (folder / "batches.meta").write_bytes(python2_dict({"num_cases_per_batch": b"M\x10'", "label_names": names}))
    return folder


def make_cifar10_binary(folder: Path) -> Path:
    folder.mkdir()
    for number, (name, count) in enumerate(_batches().items()):
        labels = np.array(fine(number, count), np.uint8)[:, None]
        (folder / f"{name}.bin").write_bytes(np.hstack([labels, pixels(number, count)]).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    return folder


def make_cifar100_python(folder: Path) -> Path:
    folder.mkdir()
    for number, (name, count) in enumerate({"train": NUM_BATCH, "test": NUM_TEST}.items()):
        labels = fine(number, count)
        batch = {
            "fine_labels": python2_numbers(labels),
            "coarse_labels": python2_numbers(coarse(labels)),
            "data": python2_array(pixels(number, count)),
        }
        (folder / name).write_bytes(python2_dict(batch))
    meta = {
        "fine_label_names": python2_list([python2_string(name) for name in CLASSES]),
        "coarse_label_names": python2_list([python2_string(name) for name in COARSE]),
    }
    (folder / "meta").write_bytes(python2_dict(meta))
    return folder


def make_cifar100_binary(folder: Path) -> Path:
    folder.mkdir()
    for number, (name, count) in enumerate({"train": NUM_BATCH, "test": NUM_TEST}.items()):
        labels = fine(number, count)
        columns = [np.array(kind, np.uint8)[:, None] for kind in (coarse(labels), labels)]
        (folder / f"{name}.bin").write_bytes(np.hstack([*columns, pixels(number, count)]).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")
    return folder


def _batches() -> dict[str, int]:
    return {**{f"data_batch_{number}": NUM_BATCH for number in range(1, 6)}, "test_batch": NUM_TEST}
