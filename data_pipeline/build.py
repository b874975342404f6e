"""A raw data set -> shards, index files and manifest.

Everything is written and synced in a folder of its own inside OUT, then moved into place, the manifest last: a build
that is killed leaves either the data set that was there or none, never half of one that looks whole.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from data_pipeline import decode, plan
from data_pipeline.errors import BadImageError
from data_pipeline.label_corruption import corrupt, transition_matrix
from data_pipeline.manifest import MANIFEST_FILE, Manifest, Recipe, Shard, SkippedExample, Split
from data_pipeline.shard_writer import ShardWriter
from data_pipeline.sources.base import SPLITS, Source, SourceExample
from data_pipeline.spec import Corruption
from data_pipeline.storage import sync_folder

STAGING_DIR = ".building"
LOCK_FILE = ".lock"
_EXAMPLE_ID = re.compile(r"[A-Za-z0-9_,=+@-]{1,80}")


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How to build; the defaults suit most data."""

    seed: int = 0
    """Seed of the order of the examples in the shards."""
    shard_size: int = 2000
    """Most examples a shard."""
    corruption: Corruption | None = None
    """Label noise for the training split; clean labels are kept."""
    force: bool = False
    """Replace another data set that stands in OUT."""


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


@dataclasses.dataclass(frozen=True)
class _Listed:
    """An example with its place in data-set order; `label` is the source's, before injected noise."""

    example: SourceExample
    ordinal: int
    label: int


def build(
    source: Source, out: Path, options: BuildOptions, on_progress: Callable[[Progress], None] = lambda _: None
) -> BuildResult:
    """Build the data set into the folder `out`. ValueError if another one stands there, unless `options.force`."""
    if options.shard_size < 1:
        raise ValueError(f"shard_size {options.shard_size} must be at least 1")
    listed, recipe = _list(source, options)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        existing = _existing(out, force=options.force)
        if existing is not None and existing.recipe != recipe and not options.force:
            raise _other_data_set(out, existing)
        staging = out / STAGING_DIR
        shutil.rmtree(staging, ignore_errors=True)  # of a build that was killed: we hold the lock
        staging.mkdir()
        try:
            manifest = _write(source, listed, recipe, staging, on_progress).at(out)
            if existing is not None and existing.digest == manifest.digest and not existing.verify():
                return BuildResult(manifest, is_new=False)
            if existing is not None and existing.digest != manifest.digest and not options.force:
                raise _other_data_set(out, existing)
            _publish(staging, out, existing, manifest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return BuildResult(manifest, is_new=True)


def _list(source: Source, options: BuildOptions) -> tuple[dict[str, list[_Listed]], Recipe]:
    """All examples by split in data-set order, labels as they will be given; checked."""
    by_split: dict[str, list[SourceExample]] = {split: [] for split in SPLITS}
    listing = hashlib.sha256(repr(source.classes).encode())
    seen: set[str] = set()
    num_classes = len(source.classes)
    for example in source.examples():
        if not _EXAMPLE_ID.fullmatch(example.example_id):
            raise ValueError(f"example_id {example.example_id!r} must be 1 to 80 letters, digits or -_,+=@")
        if example.example_id in seen:
            raise ValueError(f"example_id {example.example_id!r} stands for more than one example of {source.name!r}")
        if not 0 <= example.given_label < num_classes:
            raise ValueError(f"{example.example_id}: label {example.given_label} must be 0 to {num_classes - 1}")
        seen.add(example.example_id)
        by_split[example.split].append(example)
        listing.update(repr((example.example_id, example.split, example.given_label, example.clean_label)).encode())
    recipe = Recipe(
        source=source.name,
        listing_sha256=listing.hexdigest(),
        seed=options.seed,
        shard_size=options.shard_size,
        corruption=options.corruption,
        transition_matrix=None if options.corruption is None else _matrix(options.corruption, num_classes),
    )
    listed = {
        split: _with_noise(examples, num_classes, options.corruption if split == "train" else None)
        for split, examples in by_split.items()
    }
    return listed, recipe


def _matrix(corruption: Corruption, num_classes: int) -> tuple[tuple[float, ...], ...]:
    """As the manifest stores it."""
    return tuple(tuple(row) for row in transition_matrix(corruption, num_classes).tolist())


def _with_noise(examples: Sequence[SourceExample], num_classes: int, corruption: Corruption | None) -> list[_Listed]:
    labels = np.array([example.given_label for example in examples], dtype=np.int64)
    given = labels if corruption is None else corrupt(labels, num_classes, corruption)
    return [
        _Listed(dataclasses.replace(example, given_label=label), ordinal, example.given_label)
        for ordinal, (example, label) in enumerate(zip(examples, given.tolist(), strict=True))
    ]


def _write(
    source: Source,
    listed: dict[str, list[_Listed]],
    recipe: Recipe,
    staging: Path,
    on_progress: Callable[[Progress], None],
) -> Manifest:
    splits: dict[str, Split] = {}
    skipped: list[SkippedExample] = []
    for name, items in listed.items():
        if not items and name != "train":
            continue  # a source need not have val or test
        order = plan.permutation(f"{recipe.source}/{name}", recipe.seed, 0, len(items)).tolist()
        with closing(_SplitWriter(source, staging, name, recipe.shard_size)) as writer:
            for num_done, place in enumerate(order, start=1):
                writer.add(items[place])
                on_progress(Progress(name, num_done, len(items)))
            splits[name] = writer.finish()
        skipped += sorted(writer.skipped, key=lambda example: example.ordinal)
    return Manifest(name=source.name, classes=source.classes, splits=splits, skipped=tuple(skipped), recipe=recipe)


class _SplitWriter:
    """Writes one split's shards one after the other, and counts."""

    def __init__(self, source: Source, folder: Path, split: str, shard_size: int) -> None:
        self._source, self._folder, self._split, self._shard_size = source, folder, split, shard_size
        self._shards: list[Shard] = []
        self._shard: ShardWriter | None = None
        self._class_counts: Counter[int] = Counter()
        self._num_clean_labels = 0
        self.skipped: list[SkippedExample] = []

    def add(self, item: _Listed) -> None:
        """Read the image and append it; an image that cannot be read is listed in `skipped`."""
        example = item.example
        try:
            data = self._source.read(example)
            shape = decode.image_shape(data)
        except (OSError, BadImageError) as error:
            reason = (error.strerror or "read error") if isinstance(error, OSError) else str(error)
            self.skipped.append(
                SkippedExample(
                    example_id=example.example_id,
                    split=self._split,
                    ordinal=item.ordinal,
                    label=item.label,
                    reason=reason,
                )
            )
            return
        if self._shard is None:
            self._shard = ShardWriter(self._folder, f"{self._split}-{len(self._shards):06d}")
        self._shard.add(example, item.ordinal, data, shape)
        self._class_counts[example.given_label] += 1
        self._num_clean_labels += example.clean_label is not None
        if len(self._shard) == self._shard_size:
            self._end_shard()

    def finish(self) -> Split:
        """End the last shard; ValueError if there was nothing to write."""
        self._end_shard()
        num_examples = sum(shard.num_examples for shard in self._shards)
        if not num_examples:
            first = f"; the first: {self.skipped[0].example_id}: {self.skipped[0].reason}" if self.skipped else ""
            raise ValueError(
                f"split {self._split!r} of {self._source.name!r}: none of its {len(self.skipped)} pictures"
                f" can be read{first}"
            )
        return Split(
            num_examples=num_examples,
            num_listed=num_examples + len(self.skipped),
            class_counts=tuple(self._class_counts[label] for label in range(len(self._source.classes))),
            num_clean_labels=self._num_clean_labels,
            shards=tuple(self._shards),
        )

    def close(self) -> None:
        """Leave an unfinished shard as it is."""
        if self._shard is not None:
            self._shard.close()

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._shards.append(self._shard.finish())
            self._shard = None


def _publish(staging: Path, out: Path, existing: Manifest | None, manifest: Manifest) -> None:
    """Move the new files into place. The old manifest goes first and the new one comes last."""
    (out / MANIFEST_FILE).unlink(missing_ok=True)
    sync_folder(out)
    new = _files(manifest)
    for path in new:
        (staging / path).replace(out / path)
    for path in set(_files(existing)) - set(new) if existing else ():
        (out / path).unlink(missing_ok=True)
    manifest.save(out)


def _files(manifest: Manifest) -> list[str]:
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    return [entry.path for shard in shards for entry in (shard, shard.index)]


def _existing(out: Path, *, force: bool) -> Manifest | None:
    if not (out / MANIFEST_FILE).exists():
        return None
    try:
        return Manifest.load(out / MANIFEST_FILE)
    except ValueError:
        if force:
            return None
        raise


def _other_data_set(out: Path, existing: Manifest) -> ValueError:
    return ValueError(
        f"{out} holds another build of data set {existing.name!r}; choose another folder, or --force to replace it"
    )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder; the lock ends with the process."""
    descriptor = os.open(out / LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out} is being built by another process") from None
        yield
    finally:
        os.close(descriptor)
