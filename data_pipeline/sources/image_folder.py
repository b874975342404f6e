"""Pictures in a folder for each class, as torchvision's ImageFolder reads them.

    train/<class>/…/<file>    val/ (or valid/, validation/)    test/        or, where there is no train/,
    <class>/…/<file>          everything is train

Classes are the class folders of all splits, by name. Files are pictures by their suffix (`SUFFIXES`); others, and
pictures beside the class folders, are counted in the notes. What is hidden (`.name`) is not looked at. Links to files
are followed, links to folders only where they stand for a split or a class.
Without a val/, `num_val` training examples, drawn by `val_seed`, become val.

Whether the folders are right is for whoever builds to say: with `are_clean` an example's folder is its clean label too.

example_id: the path without suffix, its slashes as dashes: `train/cat/01/a.jpg` -> `train-cat-01-a` (example_ids.py:
names that do not fit).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_pipeline.sources.base import SPLITS, SourceExample, SplitName
from data_pipeline.sources.example_ids import example_ids, readable
from data_pipeline.sources.hold_out import hold_out

SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
_SUFFIXES_TOLD = f"files count as pictures by their suffix: {', '.join(SUFFIXES)}"
_NUM_NAMED = 3

_SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip


class _Picture(NamedTuple):
    class_name: str
    path: str
    """Below the root."""


class ImageFolder:
    """A folder of class folders. The tree is read at once, the pictures as they are asked for."""

    def __init__(
        self,
        path: str | Path,
        name: str | None = None,
        *,
        are_clean: bool = False,
        num_val: int = 0,
        val_seed: int = 0,
    ) -> None:
        self._root = Path(path).absolute()
        if not self._root.is_dir():
            raise ValueError(f"{self._root}: there is no such folder")
        self.name = name or self._root.name
        self._are_clean = are_clean
        self._pictures: dict[SplitName, list[_Picture]] = {}
        self.notes: tuple[str, ...] = ()
        self._read_tree()
        if num_val:
            self._hold_out(num_val, val_seed)
        trained = {picture.class_name for picture in self._pictures["train"]}
        if untrained := [name for name in self.classes if name not in trained]:
            self.notes += (f"classes without a training example: {readable(', '.join(untrained))}",)

    def _read_tree(self) -> None:
        splits = _split_folders(self._root)
        class_folders = {split: _folders(folder) for split, folder in splits.items()}
        self.classes = tuple(sorted({name for names in class_folders.values() for name in names}))
        if len(self.classes) < 2:
            raise ValueError(f"{self._root} must hold a folder for each of two classes or more; it has {self.classes}")
        others: list[Path] = []
        for split, folder in splits.items():
            pictures = self._pictures[split] = []
            for name in class_folders[split]:
                for file in _walk(folder / name):
                    if _suffix(file) in SUFFIXES:
                        pictures.append(_Picture(name, file.relative_to(self._root).as_posix()))
                    else:
                        others.append(file)
        loose = [file for folder in sorted({self._root, *splits.values()}) for file in _pictures_in(folder)]
        if not self._pictures["train"]:
            found = f"; left out: {self._counted([*others, *loose])}" if others or loose else ""
            raise ValueError(f"{self._root} holds no picture to train on; {_SUFFIXES_TOLD}{found}")
        if others:
            self.notes += (f"left out, as they are no pictures: {self._counted(others)} ({_SUFFIXES_TOLD})",)
        if loose:
            self.notes += (f"left out, as they lie in no class folder: {self._counted(loose)}",)

    def _counted(self, files: Sequence[Path]) -> str:
        """`4 files, a.txt, b.txt, c.txt, …`."""
        names = [readable(file.relative_to(self._root).as_posix()) for file in files[:_NUM_NAMED]]
        names += ["…"] if len(files) > _NUM_NAMED else []
        return f"{len(files):,} {'file' if len(files) == 1 else 'files'}, {', '.join(names)}"

    def _hold_out(self, num_val: int, val_seed: int) -> None:
        if "val" in self._pictures:
            raise ValueError(f"num_val {num_val}: {self._root} has a val of its own, so it must be 0")
        pictures = self._pictures["train"]
        train, val = hold_out(len(pictures), num_val, val_seed)
        self._pictures["train"] = [pictures[row] for row in train]
        self._pictures["val"] = [pictures[row] for row in val]
        self.notes += (f"val: {num_val:,} training examples drawn by seed {val_seed}",)

    def examples(self) -> Iterator[SourceExample]:
        """train, val, test; within each by class, then by path."""
        labels = {name: label for label, name in enumerate(self.classes)}
        rows = [(split, picture) for split in SPLITS for picture in self._pictures.get(split, ())]
        ids = example_ids([picture.path for _, picture in rows])
        for (split, (class_name, path)), example_id in zip(rows, ids, strict=True):
            label = labels[class_name]
            clean_label = label if self._are_clean else None
            suffix = _suffix(PurePosixPath(path))
            yield SourceExample(example_id, path, suffix, split, label, clean_label, readable(path))

    def read(self, example: SourceExample) -> bytes:
        """The image file."""
        return (self._root / example.key).read_bytes()

    def __getstate__(self) -> dict[str, object]:
        """For another process, which only reads pictures: without the tree."""
        return {"name": self.name, "classes": self.classes, "notes": self.notes, "_root": self._root}


def _split_folders(root: Path) -> dict[SplitName, Path]:
    """Each split's folder; the root itself where everything is train."""
    if not (root / "train").is_dir():
        if _SPLIT_FOLDERS.keys() >= {*_folders(root)}:
            raise ValueError(f"{root} must hold a folder for each of two classes or more, or train/ with such folders")
        return {"train": root}
    splits: dict[SplitName, Path] = {}
    for name in _folders(root):
        split = _SPLIT_FOLDERS.get(name)
        if split is None:
            raise ValueError(
                f"{root} holds train/ and {name}/; beside train/ only {', '.join(_SPLIT_FOLDERS)} may stand"
            )
        if split in splits:
            raise ValueError(f"{root} holds both {splits[split].name}/ and {name}/; one folder a split is allowed")
        splits[split] = root / name
    return splits


def _folders(folder: Path) -> list[str]:
    """Names of the folders in it, sorted; hidden ones are left out."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures_in(folder: Path) -> list[Path]:
    """Those that lie in the folder itself, and are not hidden."""
    files = (path for path in folder.iterdir() if _suffix(path) in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in files if path.is_file())


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below that is not hidden, by path: other programs keep copies and thumbnails in hidden ones."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, file) for file in sorted(files) if not file.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _suffix(path: PurePosixPath | Path) -> str:
    return path.suffix[1:].lower()
