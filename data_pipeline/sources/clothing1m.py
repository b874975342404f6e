"""Clothing1M's own layout (Xiao et al. 2015), from a folder or from an uncompressed tar of it.

    category_names_eng.txt          class names, one a line, in label order
    noisy_label_kv.txt, clean_label_kv.txt                     `<key> <label>` a line
    noisy_train_key_list.txt, clean_{train,val,test}_key_list.txt   a key a line: `images/<0-9>/<00-99>/<id>.jpg`

train: the noisy training keys, less every key that is in val or test; given label = noisy label; clean label if known.
val, test: the clean keys; given label = clean label. Keys of clean_train that are not noisy training keys are not used.
The original has 14 classes, 1,000,000 noisy training keys, 47,570 clean ones, 14,313 for val, 10,526 for test
(`ORIGINAL`); the notes say how what was read compares with that.

example_id: the key without `images/` and suffix, its slashes as dashes and dots as underscores:
`images/8/47/c6fd5889.jpg` -> `8-47-c6fd5889`.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from data_pipeline.sources.base import SourceExample, SplitName
from data_pipeline.sources.example_ids import readable

CLASSES_FILE = "category_names_eng.txt"
MAX_LABEL_DIGITS = 9
_IMAGE_SUFFIXES = ("jpg", "jpeg", "png")
_KEY = re.compile(r"images/(.*[^/])\.([A-Za-z]+)")  # of a million: pathlib would take ten seconds


class Sizes(NamedTuple):
    """How much a data set in this layout lists."""

    classes: int
    noisy_train: int
    clean_train: int
    clean_val: int
    clean_test: int

    def __str__(self) -> str:
        return ", ".join(f"{size:,} {name}" for name, size in self._asdict().items())


ORIGINAL = Sizes(classes=14, noisy_train=1_000_000, clean_train=47_570, clean_val=14_313, clean_test=10_526)


class _Files(Protocol):
    """A folder's files by their path inside it; OSError for one that cannot be read."""

    def read(self, path: str) -> bytes: ...

    def close(self) -> None: ...


class Clothing1M:
    """A data set in Clothing1M's layout; the lists are read at once, the pictures as they are asked for."""

    def __init__(self, path: str | Path, name: str = "clothing1m", *, only_original: bool = False) -> None:
        """With `only_original` any other sizes than Clothing1M's own are refused: lists that were cut, another set."""
        self.name = name
        self._path = Path(path)
        self._files = _open_files(self._path)
        try:
            self._read_lists(only_original=only_original)
        except BaseException:
            self._files.close()
            raise

    def _read_lists(self, *, only_original: bool) -> None:
        self.classes = tuple(self._lines(CLASSES_FILE))
        self._noisy_labels = self._labels("noisy_label_kv.txt")
        self._clean_labels = self._labels("clean_label_kv.txt")
        self._keys: dict[SplitName, list[str]] = {
            "train": self._lines("noisy_train_key_list.txt"),
            "val": self._lines("clean_val_key_list.txt"),
            "test": self._lines("clean_test_key_list.txt"),
        }
        clean_train = self._lines("clean_train_key_list.txt")
        noisy_train, val, test = self._keys.values()
        sizes = Sizes(len(self.classes), len(noisy_train), len(clean_train), len(val), len(test))
        if only_original and sizes != ORIGINAL:
            raise ValueError(f"{self._path} lists {sizes}; Clothing1M itself has {ORIGINAL}")
        held_out = {*val, *test}
        train = self._keys["train"] = [key for key in noisy_train if key not in held_out]
        left_out = f"{len(noisy_train) - len(train):,} of {len(noisy_train):,} noisy training keys"
        self.notes = (
            f"lists {sizes}: as Clothing1M" if sizes == ORIGINAL else f"lists {sizes}; Clothing1M has {ORIGINAL}",
            f"{left_out} are in val or test too and were left out",
            self._note_on_both_labels(clean_train),
        )

    def _note_on_both_labels(self, clean_train: list[str]) -> str:
        train = set(self._keys["train"])
        both = [key for key in train if key in self._clean_labels]
        differ = sum(self._clean_labels[key] != self._noisy_labels.get(key) for key in both)
        unused = sum(key not in train for key in clean_train)
        return (
            f"{len(both):,} training examples have a clean label too, which differs in {differ:,};"
            f" {unused:,} clean training keys are not in train and are not used"
        )

    def examples(self) -> Iterator[SourceExample]:
        """train, val, test; within each in the order of the key list."""
        for split, keys in self._keys.items():
            for key in keys:
                clean_label = self._clean_labels.get(key)
                given_label = self._noisy_labels.get(key) if split == "train" else clean_label
                example_id, suffix = example_id_of(key)
                yield SourceExample(example_id, key, suffix, split, given_label, clean_label, readable(key))

    def read(self, example: SourceExample) -> bytes:
        """The image file."""
        return self._files.read(example.key)

    def close(self) -> None:
        """Close the tar."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        """For another process, which only reads pictures: without the lists, 200 MB of a million examples."""
        return {"name": self.name, "classes": self.classes, "notes": self.notes, "_files": self._files}

    def _lines(self, file: str) -> list[str]:
        try:
            text = self._files.read(file).decode("utf-8-sig")  # some editors put a mark before the first line
        except OSError as error:
            raise ValueError(f"{self._path} is not in Clothing1M's layout: {file}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._path}: {file} is not UTF-8 text: {error}") from None
        return [stripped for line in text.splitlines() if (stripped := line.strip())]

    def _labels(self, file: str) -> dict[str, int]:
        labels: dict[str, int] = {}
        for number, line in enumerate(self._lines(file), start=1):
            key, _, label = line.rpartition(" ")
            if not key or not label.isdecimal() or len(label) > MAX_LABEL_DIGITS:
                raise ValueError(
                    f"{self._path}: {file}, entry {number}: {line[:200]!r} must be `<key> <label>`,"
                    f" labels 0 to {len(self.classes) - 1}"
                )
            labels[key.strip()] = int(label)
        return labels


def example_id_of(key: str) -> tuple[str, str]:
    """(example_id, suffix) of a key."""
    match = _KEY.fullmatch(key)
    suffix = match[2].lower() if match else ""
    if match is None or suffix not in _IMAGE_SUFFIXES or ".." in key.split("/"):
        raise ValueError(f"key {key!r} must be a path below images/ that ends in .{', .'.join(_IMAGE_SUFFIXES)}")
    return match[1].replace("/", "-").replace(".", "_"), suffix


def _open_files(path: Path) -> _Files:
    if path.is_dir():
        return _FolderFiles(path)
    if path.is_file():
        return _TarFiles(path)
    raise ValueError(f"{path}: there is no such folder or tar file")


class _FolderFiles:
    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def close(self) -> None:
        pass


class _TarFiles:
    """Files of a tar, below the folder that holds the class names: one pass over the headers, then reads by offset."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._descriptor = self._open()
        try:
            self._members = self._index()
        except BaseException:
            self.close()
            raise

    def _index(self) -> dict[str, tuple[int, int]]:
        places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(self._path, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # documented, not in the stubs: frees 1 KB a file
                    if member.isreg():
                        places[member.name] = (member.offset_data, member.size)
                end = tar.offset
        except tarfile.TarError as error:
            raise ValueError(f"{self._path} is no whole, uncompressed tar file: {error}") from None
        if os.pread(self._descriptor, tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):  # tarfile takes it for one
            raise ValueError(f"{self._path} is damaged or cut: at byte {end:,} there is no mark of the end")
        roots = [name.removesuffix(CLASSES_FILE) for name in places if PurePosixPath(name).name == CLASSES_FILE]
        if len(roots) != 1:
            raise ValueError(f"{self._path} must hold one {CLASSES_FILE}; it holds {len(roots)}")
        return {name.removeprefix(roots[0]): place for name, place in places.items() if name.startswith(roots[0])}

    def _open(self) -> int:
        return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, path: str) -> bytes:
        if path not in self._members:
            raise FileNotFoundError(2, "No such file or directory", path)
        offset, size = self._members[path]
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise OSError(5, "The tar file ends inside it", path)
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __getstate__(self) -> tuple[Path, dict[str, tuple[int, int]]]:
        return self._path, self._members

    def __setstate__(self, state: tuple[Path, dict[str, tuple[int, int]]]) -> None:
        self._path, self._members = state
        self._descriptor = self._open()
