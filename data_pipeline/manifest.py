"""Manifest: which shards a data set has, what they hold, and their checksums.

`manifest.json` stands beside the shards, names them by relative path and is written last: without it a folder is no
data set. It bears no time, host or absolute path, so that building twice gives equal bytes and an equal
digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from data_pipeline.errors import StorageError
from data_pipeline.spec import Corruption
from data_pipeline.storage import Storage, storage_for
from data_pipeline.storage.addresses import inside, split_url
from data_pipeline.storage.local import LocalStorage
from data_pipeline.storage.patience import USUAL_PATIENCE, Patience

MANIFEST_FILE = "manifest.json"
MAX_NAME_CHARS = 200

RelativePath = Annotated[str, AfterValidator(inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Base of what stands in the manifest: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileEntry(Record):
    """One file of the data set."""

    path: RelativePath
    """Relative to the manifest, with forward slashes."""
    size_bytes: Count
    sha256: Sha256


class Shard(FileEntry):
    """One tar file, and the index file that says where each example lies in it."""

    num_examples: Count
    index: FileEntry


class Split(Record):
    """One split: train, val or test."""

    num_examples: Count
    num_listed: Count
    """Examples the source lists; those that are not in the shards stand in `skipped`."""
    class_counts: tuple[int, ...]
    """Examples by given label."""
    num_clean_labels: Count
    """Examples whose clean label is known."""
    shards: tuple[Shard, ...]


class SkippedExample(Record):
    """An example that the source lists and that could not be used at build."""

    example_id: str
    split: str
    ordinal: Count
    """Position in the source's order of the split. Noise is drawn for it too: a lost file shifts no other label."""
    label: Count | None
    """Label in the source, before injected noise; None: it has none that is one, and no noise is drawn for it."""
    reason: str


class Recipe(Record):
    """What the build was asked for: another recipe is another data set."""

    source: str
    listing_sha256: Sha256
    """Over ids, splits and labels of all examples in the source's order."""
    seed: Count
    """Seed of the order of the examples in the shards."""
    shard_size: int = Field(ge=1)
    """Most examples a shard."""
    corruption: Corruption | None
    """Label noise injected into the training split at build."""
    transition_matrix: tuple[tuple[float, ...], ...] | None = None
    """Of that noise: row y holds the probabilities of each given label when the clean label is y."""
    owns_shards: bool = True
    """False: the shards were there before and were only indexed; no build overwrites or deletes them."""


def check_names(name: str, classes: Sequence[str]) -> None:
    """ValueError if a data set cannot be named so, or its classes: said before anything is read."""
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise ValueError(f"name {name[:40]!r} of a data set must have 1 to {MAX_NAME_CHARS} characters")
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"{name!r} must have at least two classes of different names, not {', '.join(classes)!r}")
    for text in (name, *classes):
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # what stands for bytes of a file's name
            raise ValueError(f"name {text!a} is not UTF-8")


class Manifest(Record):
    """A built data set. Read one with `Manifest.load`."""

    format: Literal["hush-shards/1"] = "hush-shards/1"
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    classes: tuple[str, ...] = Field(min_length=2)
    """Class names in label order."""
    splits: dict[str, Split]
    skipped: tuple[SkippedExample, ...] = ()
    recipe: Recipe
    _storage: Storage = PrivateAttr(default_factory=lambda: LocalStorage(Path()))

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        for name, split in self.splits.items():
            skipped = sum(example.split == name for example in self.skipped)
            in_shards = sum(shard.num_examples for shard in split.shards)
            if not split.num_examples == in_shards == sum(split.class_counts) == split.num_listed - skipped:
                raise ValueError(
                    f"split {name!r}: num_examples {split.num_examples}, its shards {in_shards}, its class_counts"
                    f" {sum(split.class_counts)} and num_listed less skipped {split.num_listed - skipped} must be equal"
                )
            if len(split.class_counts) != len(self.classes):
                raise ValueError(
                    f"split {name!r}: class_counts has {len(split.class_counts)} entries, classes {len(self.classes)}"
                )
        return self

    @model_validator(mode="after")
    def _skipped_fit(self) -> Self:
        places = {(example.split, example.ordinal) for example in self.skipped}
        if len(places) < len(self.skipped):
            raise ValueError("skipped: two examples have one split and ordinal")
        for example in self.skipped:
            split = self.splits.get(example.split)
            if split is None or example.ordinal >= split.num_listed:
                raise ValueError(
                    f"skipped: {example.example_id!r} is number {example.ordinal} of split {example.split!r},"
                    " which lists fewer"
                )
            if example.label is not None and example.label >= len(self.classes):
                raise ValueError(f"skipped: label {example.label} of {example.example_id!r} is none of the classes")
        return self

    @classmethod
    def load(cls, url: str | Path, patience: Patience = USUAL_PATIENCE) -> Manifest:
        """Read `manifest.json` at a path, s3:// or http(s)://; a ValueError says in one line what is wrong with it.

        A storage that cannot be reached is a StorageError: it may be back later.
        """
        try:
            folder, name = split_url(url)
            storage = storage_for(folder, patience)
            content = storage.read(name)
        except FileNotFoundError:
            raise ValueError(f"manifest {str(url)!r}: there is no such file; `hush data build` makes one") from None
        except IsADirectoryError:
            raise ValueError(f"manifest {str(url)!r} is a folder; give the {MANIFEST_FILE} in it") from None
        except StorageError:
            raise
        except (OSError, ValueError) as error:
            raise ValueError(f"manifest {str(url)!r} cannot be read: {error}") from None
        try:
            manifest = cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ValueError(f"manifest {str(url)!r} is no data set manifest: {where}: {first['msg']}") from None
        return manifest.at(storage)

    def at(self, place: Path | Storage) -> Manifest:
        """The same manifest, its shards lying in this folder or storage."""
        copy = self.model_copy()
        copy._storage = LocalStorage(place) if isinstance(place, Path) else place
        return copy

    @property
    def storage(self) -> Storage:
        """Where the shards lie; their paths are relative to its root."""
        return self._storage

    @property
    def url(self) -> str:
        """Where `manifest.json` lies: a path, or an address."""
        return f"{self._storage.url}/{MANIFEST_FILE}"

    @property
    def root(self) -> Path:
        """The folder that the shards' paths are relative to; ValueError if they lie on another machine."""
        if not isinstance(self._storage, LocalStorage):
            raise ValueError(f"{self.url} is not in a folder of this machine")
        return Path(self._storage.url)

    def to_bytes(self) -> bytes:
        """The content of `manifest.json`."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()

    @property
    def digest(self) -> str:
        """sha256 of `manifest.json`: through the shards' checksums it names every byte of the data set."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, place: Path | Storage) -> None:
        """Write `manifest.json` into a folder or storage: all of it or nothing."""
        self.at(place).storage.write(MANIFEST_FILE, self.to_bytes())

    def split(self, name: str) -> Split:
        """The split of this name; a ValueError names those there are."""
        if name not in self.splits:
            raise ValueError(f"split {name!r} is not in data set {self.name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]
