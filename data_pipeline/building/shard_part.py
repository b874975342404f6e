"""One part of a build: read its pictures, write shard and index aside, check them, and put them where they belong.

Parts share nothing, so any process may take any of them, in any order, and the bytes are the same. What became of one
is written down beside the shards (`BuiltPart`), last: a build that goes on later reads it and keeps the shard, provided
that the files are whole.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from data_pipeline.building.bad_examples import skipped
from data_pipeline.building.listing import ListedExample, Part
from data_pipeline.building.shard_writer import ShardWriter
from data_pipeline.check import file_problem
from data_pipeline.errors import BadImageError
from data_pipeline.manifest import Count, FileEntry, Record, Shard, SkippedExample
from data_pipeline.pictures import decode
from data_pipeline.processes import OnStep
from data_pipeline.sources.base import Source
from data_pipeline.storage import Storage, storage_for

BUILDING_DIR = ".building"
EXAMPLES_PER_STEP = 50
"""Progress is told in steps of so many."""


class BuiltPart(Record):
    """What became of a part."""

    format: Literal["hush-shards/1"] = "hush-shards/1"
    recipe_sha256: str
    """Of the recipe that it was built by."""
    name: str
    split: str
    num_listed: Count
    shard: Shard | None
    """None: none of its pictures can be read."""
    class_counts: tuple[int, ...]
    num_clean_labels: Count
    skipped: tuple[SkippedExample, ...]


@dataclasses.dataclass(frozen=True)
class PartResult:
    """A built part, and whether anything had to be written for it."""

    built: BuiltPart
    is_new: bool


@dataclasses.dataclass(frozen=True)
class PartBuilder:
    """Builds parts; picklable, if the source is."""

    source: Source
    out: str
    """Folder or URL of the data set."""
    scratch: Path
    """Local folder for shards that are being written."""
    recipe_sha256: str
    standing: Mapping[str, Shard] | None
    """By path, the shards of the data set that stands in `out`: each shard must be equal to its own there, which is
    only written where it is damaged. None: there is no data set."""

    def __call__(self, part: Part, on_step: OnStep) -> PartResult:
        """Build the part, or take over what an earlier build made of it."""
        storage = storage_for(self.out)
        if self.standing is None and (finished := self._finished(storage, part)):
            on_step(len(part.listed))
            return PartResult(finished, is_new=False)
        try:
            built = self._write(part, on_step)
            is_new = self._store(storage, built) if self.standing is None else self._repair(storage, built)
        finally:
            for file in self.scratch.glob(f"{part.name}.*"):
                file.unlink()
        return PartResult(built, is_new)

    def _finished(self, storage: Storage, part: Part) -> BuiltPart | None:
        """What an earlier build wrote down, if it is still true."""
        if not storage.exists(record_path(part.name)):
            return None
        try:
            built = BuiltPart.model_validate_json(storage.read(record_path(part.name)))
        except ValidationError:
            return None
        if built.recipe_sha256 != self.recipe_sha256 or any(file_problem(storage, file) for file in _files(built)):
            return None
        by_ordinal = {listed.ordinal: listed for listed in part.listed}
        for lost in built.skipped:  # the disk may have been away for a moment
            if self._read(by_ordinal[lost.ordinal]) != lost:
                return None
        return built

    def _write(self, part: Part, on_step: OnStep) -> BuiltPart:
        """Write shard and index into the scratch folder."""
        writer: ShardWriter | None = None
        lost: list[SkippedExample] = []
        class_counts: Counter[int] = Counter()
        num_clean_labels = 0
        try:
            for number, listed in enumerate(part.listed, start=1):
                picture = self._read(listed)
                if isinstance(picture, SkippedExample):
                    lost.append(picture)
                else:
                    writer = writer or ShardWriter(self.scratch, part.name)
                    example = dataclasses.replace(listed.example, given_label=listed.given_label)
                    writer.add(example, listed.ordinal, picture.data, picture.shape)
                    class_counts[listed.given_label] += 1
                    num_clean_labels += example.clean_label is not None
                if number % EXAMPLES_PER_STEP == 0:
                    on_step(EXAMPLES_PER_STEP)
            shard = writer.finish() if writer else None
        finally:
            if writer:
                writer.close()
        on_step(len(part.listed) % EXAMPLES_PER_STEP)
        return BuiltPart(
            recipe_sha256=self.recipe_sha256,
            name=part.name,
            split=part.split,
            num_listed=len(part.listed),
            shard=shard,
            class_counts=tuple(class_counts[label] for label in range(len(self.source.classes))),
            num_clean_labels=num_clean_labels,
            skipped=tuple(lost),
        )

    def _read(self, listed: ListedExample) -> _Picture | SkippedExample:
        if listed.bad is not None:
            return listed.bad
        try:
            data = self.source.read(listed.example)
            return _Picture(data, decode.image_shape(data))
        except (OSError, BadImageError) as error:
            reason = (error.strerror or "read error") if isinstance(error, OSError) else str(error)
            return skipped(listed.example, listed.ordinal, listed.example.given_label, reason)

    def _store(self, storage: Storage, built: BuiltPart) -> bool:
        for file in _files(built):
            storage.write_file(file.path, self.scratch / file.path)
        storage.write(record_path(built.name), built.model_dump_json().encode())
        return True

    def _repair(self, storage: Storage, built: BuiltPart) -> bool:
        assert self.standing is not None
        if built.shard is not None and built.shard != self.standing.get(built.shard.path):
            raise ValueError(other_data_set(self.out, self.source.name))
        damaged = [file for file in _files(built) if file_problem(storage, file)]
        for file in damaged:
            storage.write_file(file.path, self.scratch / file.path)
        return bool(damaged)


@dataclasses.dataclass(frozen=True, slots=True)
class _Picture:
    data: bytes
    shape: tuple[int, int]
    """(height, width)."""


def record_path(name: str) -> str:
    """Where a `BuiltPart` is written down while the build lasts."""
    return f"{BUILDING_DIR}/{name}.json"


def other_data_set(out: str, name: str) -> str:
    """What to say where another build of this or another data set is in the way."""
    return f"{out} holds another build of data set {name!r}; choose another folder, or --force to replace it"


def _files(built: BuiltPart) -> tuple[FileEntry, ...]:
    return () if built.shard is None else (built.shard, built.shard.index)
