"""A raw data set -> shards, index files and manifest, in a local folder or on S3.

The examples of each shard are decided before a picture is read, so processes build shards in any order and the bytes
are the same however many there are. The manifest is written last: without it there is no data set. A build that is
killed leaves its finished shards, and notes on them in `.building/`; the next one by the same recipe keeps those that
are whole and builds the others. (Pictures of the source that changed in between are not noticed in shards that are
kept: to begin anew, delete `.building/`.)

A data set of the same recipe that stands in OUT is built again and held against the new bytes, shard by shard: damage
is repaired, any other difference refused.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from data_pipeline.building.bad_examples import check_bad
from data_pipeline.building.listing import Listing, Part, list_examples
from data_pipeline.building.shard_index import INDEX_SUFFIX
from data_pipeline.building.shard_part import (
    BUILDING_DIR,
    BuiltPart,
    PartBuilder,
    PartResult,
    other_data_set,
    record_path,
)
from data_pipeline.building.shard_writer import SHARD_SUFFIX
from data_pipeline.manifest import MANIFEST_FILE, Manifest, Record, RelativePath, Shard, SkippedExample, Split
from data_pipeline.processes import map_unordered, sensible_num_processes
from data_pipeline.sources.base import Source
from data_pipeline.spec import Corruption
from data_pipeline.storage import Storage, storage_for
from data_pipeline.storage.atomic_file import leftovers
from data_pipeline.storage.local import LocalStorage

NOTES_FILE = f"{BUILDING_DIR}/build.json"
SCRATCH_PREFIX = "scratch-"
LOCK_FILE = ".lock"


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How to build; the defaults suit most data."""

    seed: int = 0
    """Seed of the order of the examples in the shards."""
    shard_size: int = 2000
    """Most examples a shard."""
    corruption: Corruption | None = None
    """Label noise for the training split; clean labels are kept."""
    max_bad_fraction: float = 0.01
    """Share of a split's examples that may be unusable and are listed; with more there is no data set."""
    force: bool = False
    """Replace another data set that stands in OUT."""
    num_processes: int | None = None
    """None: as many as there are CPUs, fewer for a small data set. The bytes are the same."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a build is."""

    split: str
    num_done: int
    num_total: int


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """What a build made."""

    manifest: Manifest
    is_new: bool
    """False: the same data set stood there already, byte for byte."""
    num_kept: int = 0
    """Shards that were taken over from an unfinished build."""
    share_changed: float | None = None
    """Of the training labels, by injected noise; None: none was asked for."""


class _Notes(Record):
    """What a build writes down before it changes anything."""

    files: tuple[RelativePath, ...]
    """Files that this build may leave, and those of data sets and builds before it: swept up at the end, unless the
    new data set has them."""


def build(
    source: Source, out: str | Path, options: BuildOptions, on_progress: Callable[[Progress], None] = lambda _: None
) -> BuildResult:
    """Build the data set into a folder or `s3://bucket/prefix`; the source has to be picklable, for processes.

    ValueError if another data set stands there, unless `options.force`, or if too many examples cannot be used.
    """
    for name, value in (("shard_size", options.shard_size), ("num_processes", options.num_processes)):
        if value is not None and value < 1:
            raise ValueError(f"{name} {value} must be at least 1")
    storage = storage_for(out)
    _check_out(storage)
    listing = list_examples(source, seed=options.seed, shard_size=options.shard_size, corruption=options.corruption)
    for split, bad in listing.bad.items():
        check_bad(split, list(bad.values()), len(listing.examples[split]), options.max_bad_fraction)
    with _scratch(storage) as scratch:
        standing = _standing(storage, listing, force=options.force)
        if standing is None:
            _begin(storage, listing, force=options.force)
        builder = PartBuilder(
            source=source,
            out=storage.url,
            scratch=scratch,
            recipe_sha256=hashlib.sha256(listing.recipe.model_dump_json().encode()).hexdigest(),
            standing=None if standing is None else {shard.path: shard for shard in _shards(standing)},
        )
        results = _build_parts(builder, listing, options.num_processes, on_progress)
        built = [result.built for result in results]
        manifest = _assemble(source, listing, built, options.max_bad_fraction).at(storage)
        if standing is not None and standing.digest != manifest.digest:
            raise ValueError(other_data_set(storage.url, standing.name))
        if standing is None:
            manifest.save(storage)
        _sweep(storage, manifest)
    return BuildResult(
        manifest,
        is_new=standing is None or any(result.is_new for result in results),
        num_kept=0
        if standing is not None
        else sum(not result.is_new and result.built.shard is not None for result in results),
        share_changed=listing.share_changed,
    )


def _check_out(storage: Storage) -> None:
    """ValueError if OUT is a web address, or a folder that cannot be made or written to; before anything is read."""
    if storage.url.startswith(("http://", "https://")):
        raise ValueError(f"OUT {storage.url!r} can only be read from; give a folder or s3://bucket/prefix")
    if not isinstance(storage, LocalStorage):
        return
    folder = Path(storage.url)
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        is_what = "is no folder" if nearest == folder else f"cannot be a folder: {nearest} is none"
        raise ValueError(f"OUT {storage.url!r} {is_what}; give a folder, which is made if need be")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"OUT {storage.url!r}: {nearest} cannot be written to; choose another folder")


def _standing(storage: Storage, listing: Listing, *, force: bool) -> Manifest | None:
    """The data set to hold the new one against: one of the same recipe. With `force` there is none."""
    if force or not storage.exists(MANIFEST_FILE):
        return None
    standing = Manifest.load(f"{storage.url}/{MANIFEST_FILE}")
    _refuse_others_shards(standing)
    if standing.recipe != listing.recipe:
        raise ValueError(other_data_set(storage.url, standing.name))
    return standing


def _begin(storage: Storage, listing: Listing, *, force: bool) -> None:
    """Note what may be left behind; then a data set that is to be replaced ceases to be one.

    ValueError if shards that no build has made would be overwritten: always, where a manifest says so, and else unless
    `force`.
    """
    known = {*_known_files(storage)}
    names = [
        listing.part_name(split, number) for split in listing.examples for number in range(listing.num_parts(split))
    ]
    for name in names if not force else ():
        path = f"{name}{SHARD_SUFFIX}"
        if path not in known and storage.exists(path):
            raise ValueError(f"{storage.url}: {path} is there already; choose another folder, or --force to replace it")
    files = known.union(*((f"{name}{SHARD_SUFFIX}", f"{name}{INDEX_SUFFIX}", record_path(name)) for name in names))
    storage.write(NOTES_FILE, _Notes(files=tuple(sorted(files))).model_dump_json().encode())
    storage.delete(MANIFEST_FILE)


def _known_files(storage: Storage) -> Iterator[str]:
    """Files of an unfinished build, and of a data set that is to be replaced."""
    if storage.exists(NOTES_FILE):
        with suppress(ValidationError):
            yield from _Notes.model_validate_json(storage.read(NOTES_FILE)).files
    if storage.exists(MANIFEST_FILE):
        try:
            manifest = Manifest.load(f"{storage.url}/{MANIFEST_FILE}")
        except ValueError:
            return  # whatever it was: nobody can say what belongs to it
        _refuse_others_shards(manifest)
        yield from _files(manifest)


def _refuse_others_shards(manifest: Manifest) -> None:
    if not manifest.recipe.owns_shards:
        raise ValueError(f"{manifest.storage.url} holds shards that no build has made; choose another folder")


def _build_parts(
    builder: PartBuilder, listing: Listing, num_processes: int | None, on_progress: Callable[[Progress], None]
) -> list[PartResult]:
    """All parts, in the order of their names within their splits."""
    num_parts = sum(map(listing.num_parts, listing.examples))
    if num_processes is None:
        num_processes = sensible_num_processes(sum(map(len, listing.examples.values())))
    num_done: Counter[str] = Counter()

    def count(part: Part, num_examples: int) -> None:
        num_done[part.split] += num_examples
        on_progress(Progress(part.split, num_done[part.split], len(listing.examples[part.split])))

    with closing(map_unordered(builder, listing.parts(), min(num_processes, num_parts), count)) as results:
        return sorted(results, key=lambda result: result.built.name)


def _assemble(source: Source, listing: Listing, parts: list[BuiltPart], max_bad_fraction: float) -> Manifest:
    """The manifest; ValueError if a split has lost too many examples, or all of them."""
    splits: dict[str, Split] = {}
    skipped: list[SkippedExample] = []
    for name, examples in listing.examples.items():
        if not examples:
            continue  # a source need not have val or test
        mine = [part for part in parts if part.split == name]
        lost = sorted((example for part in mine for example in part.skipped), key=lambda example: example.ordinal)
        check_bad(name, lost, len(examples), max_bad_fraction)
        if len(lost) == len(examples):
            raise ValueError(f"split {name!r} of {source.name!r}: none of its {len(lost)} examples can be used")
        splits[name] = Split(
            num_examples=len(examples) - len(lost),
            num_listed=len(examples),
            class_counts=tuple(map(sum, zip(*(part.class_counts for part in mine), strict=True))),
            num_clean_labels=sum(part.num_clean_labels for part in mine),
            shards=tuple(part.shard for part in mine if part.shard is not None),
        )
        skipped += lost
    return Manifest(
        name=source.name, classes=source.classes, splits=splits, skipped=tuple(skipped), recipe=listing.recipe
    )


def _sweep(storage: Storage, manifest: Manifest) -> None:
    """Delete what is no part of the data set: notes of the build, and shards that others left."""
    for path in sorted({*_known_files(storage)} - set(_files(manifest))):
        storage.delete(path)
    storage.delete(NOTES_FILE)


def _shards(manifest: Manifest) -> list[Shard]:
    return [shard for split in manifest.splits.values() for shard in split.shards]


def _files(manifest: Manifest) -> list[str]:
    return [entry.path for shard in _shards(manifest) for entry in (shard, shard.index)]


@contextmanager
def _scratch(storage: Storage) -> Iterator[Path]:
    """A local folder for shards that are being written. A local data set is locked meanwhile, and the folder lies in
    it, so that shards need not be copied."""
    if not isinstance(storage, LocalStorage):
        with tempfile.TemporaryDirectory(prefix="hush-build-") as temporary:
            yield Path(temporary)
        return
    building = storage.path(BUILDING_DIR)
    Path(storage.url).mkdir(parents=True, exist_ok=True)
    with _locked(storage):
        building.mkdir(exist_ok=True)
        # Of builds that were killed: we hold the lock.
        for folder in building.glob(f"{SCRATCH_PREFIX}*"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (*leftovers(building), *leftovers(building.parent)):
            file.unlink(missing_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=building))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            with suppress(OSError):
                building.rmdir()  # unless there are notes in it, for the next build


@contextmanager
def _locked(storage: LocalStorage) -> Iterator[None]:
    """Hold the folder; the lock ends with the process."""
    descriptor = os.open(storage.path(LOCK_FILE), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{storage.url} is being built by another process") from None
        yield
    finally:
        os.close(descriptor)
