"""Shards that somebody else wrote -> index files and manifest beside them. The shards stay as they are.

Each shard is read once, in processes, any in any order; what is found is then put together in the order of the shards'
names. Samples that cannot be used are listed in the manifest, up to a limit; a damaged shard ends it all, as nobody can
say what it held.

example_id: the sample's key, or where two shards have one of the same key, shard and key (example_ids.py: names that do
not fit).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from data_pipeline.building.bad_examples import check_bad
from data_pipeline.building.build import BuildResult
from data_pipeline.building.shard_index import INDEX_SUFFIX, ShardIndex
from data_pipeline.building.shard_part import other_data_set
from data_pipeline.building.shard_writer import SHARD_SUFFIX
from data_pipeline.check import file_problem
from data_pipeline.manifest import (
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    Recipe,
    Shard,
    SkippedExample,
    Split,
    check_names,
)
from data_pipeline.processes import OnStep, map_unordered
from data_pipeline.sources.base import SPLITS, SourceExample, SplitName
from data_pipeline.sources.example_ids import example_ids
from data_pipeline.sources.webdataset import ForeignShard, LabelRules, Sample, read_shard
from data_pipeline.storage import Storage, storage_for
from data_pipeline.storage.addresses import inside
from data_pipeline.storage.local import LocalStorage

_COMPRESSED = (".tgz", *(f"{SHARD_SUFFIX}.{kind}" for kind in ("gz", "bz2", "xz", "zst", "lz4")))
BYTES_PER_PROCESS = 1 << 30
"""Take about as long to read as the start of a process."""


@dataclasses.dataclass(frozen=True)
class IndexOptions:
    """What the shards are."""

    name: str
    """Of the data set."""
    labels: LabelRules
    val: str = "*val*"
    """Shards of val, by a pattern for the path inside the folder, as in a shell."""
    test: str = "*test*"
    """Shards of test. All others are train."""
    are_clean: bool = False
    """The given labels are right: they are the clean labels too."""
    max_bad_fraction: float = 0.01
    """Share of a split's samples that may be unusable and are listed; with more the shards are refused."""
    num_processes: int | None = None
    """That read shards; None: one a CPU, fewer for small sets."""
    force: bool = False
    """Replace another manifest that stands there."""


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads one shard, in any process."""

    url: str
    labels: LabelRules

    def __call__(self, path: str, on_step: OnStep) -> tuple[str, ForeignShard]:
        return path, read_shard(storage_for(self.url), path, self.labels, on_step)


@dataclasses.dataclass(frozen=True, slots=True)
class _Listed:
    """A sample with its place in data-set order: by shard, then as it lies there."""

    shard: str
    sample: Sample
    example_id: str
    ordinal: int


def index_shards(
    folder: str | Path, options: IndexOptions, on_bytes: Callable[[int, int], None] = lambda _done, _total: None
) -> BuildResult:
    """Index every `.tar` below the folder, and write index files and manifest into it.

    `on_bytes` is told how many bytes are read, of how many. ValueError, and nothing written: there is no shard, one is
    damaged or holds pickles, too many samples cannot be used.
    """
    check_names(options.name, options.labels.classes)
    storage = storage_for(folder)
    paths = _shard_paths(storage)
    shards = _read_all(storage, paths, options, on_bytes)
    listed = _listed(shards, options)
    for split, of_split in listed.items():
        check_bad(split, _skipped(split, of_split), len(of_split), options.max_bad_fraction)
    indexes = {path: ShardIndex() for path in paths}
    for split, of_split in listed.items():
        for each in of_split:
            if each.sample.problem is None:
                _add(indexes[each.shard], each, split, options)
    contents = {path: index.to_bytes() for path, index in indexes.items() if len(index)}
    entries = {path: _entry(path, shards[path], len(indexes[path]), content) for path, content in contents.items()}
    manifest = _manifest(listed, entries, options).at(storage)
    files = {entries[path].index: content for path, content in contents.items()}
    return BuildResult(manifest, is_new=_write(storage, manifest, files, options))


def _shard_paths(storage: Storage) -> list[str]:
    """Below the folder, sorted."""
    if not isinstance(storage, LocalStorage):
        raise ValueError(f"{storage.url} is not a folder of this machine; index the shards where they lie in one")
    root = Path(storage.url)
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder")
    if not os.access(root, os.W_OK):
        raise ValueError(f"{root} cannot be written to; index files and {MANIFEST_FILE} go beside the shards")
    paths = [path.relative_to(root).as_posix() for path in root.rglob(f"*{SHARD_SUFFIX}") if path.is_file()]
    compressed = sorted(path.name for path in root.rglob("*") if path.name.lower().endswith(_COMPRESSED))
    if compressed:
        raise ValueError(f"{root} holds {compressed[0]!r}: decompress it, so that pictures can be read by their place")
    if not paths:
        raise ValueError(f"{root} holds no {SHARD_SUFFIX} file")
    for path in paths:
        if not inside(path).isprintable():
            raise ValueError(f"{root}: the name of {path!a} cannot stand in a manifest; give the shard another")
    return sorted(paths)


def _read_all(
    storage: Storage, paths: Sequence[str], options: IndexOptions, on_bytes: Callable[[int, int], None]
) -> dict[str, ForeignShard]:
    """In the order of the paths."""
    total = sum(map(storage.size_bytes, paths))
    num_processes = options.num_processes or min(len(os.sched_getaffinity(0)), 1 + total // BYTES_PER_PROCESS)
    num_done = 0

    def count(_path: str, num_bytes: int) -> None:
        nonlocal num_done
        num_done += num_bytes
        on_bytes(num_done, total)

    reader = _Reader(storage.url, options.labels)
    with closing(map_unordered(reader, paths, min(num_processes, len(paths)), count)) as results:
        found = dict(results)
    return {path: found[path] for path in paths}


def _listed(shards: Mapping[str, ForeignShard], options: IndexOptions) -> dict[SplitName, list[_Listed]]:
    """All samples of the splits that have shards, in data-set order."""
    ids = _ids({path: shard.samples for path, shard in shards.items()})
    listed: dict[SplitName, list[_Listed]] = {}
    for split in SPLITS:
        paths = [path for path in shards if _split_of(path, options) == split]
        samples = ((path, sample) for path in paths for sample in shards[path].samples)
        if paths:
            listed[split] = [
                _Listed(path, sample, ids[path, sample.key], ordinal) for ordinal, (path, sample) in enumerate(samples)
            ]
    if "train" not in listed:
        raise ValueError(f"no shard is left for train: val {options.val!r} and test {options.test!r} match all of them")
    return listed


def _split_of(path: str, options: IndexOptions) -> SplitName:
    if fnmatch.fnmatchcase(path, options.val):
        return "val"
    return "test" if fnmatch.fnmatchcase(path, options.test) else "train"


def _ids(samples: Mapping[str, Sequence[Sample]]) -> dict[tuple[str, str], str]:
    """(shard, key) -> id."""
    keys = {(path, sample.key): sample.suffix for path, of_shard in samples.items() for sample in of_shard}
    times = Counter(key for _, key in keys)
    is_unique = all(count == 1 for count in times.values())
    names = {
        (path, key): f"{'' if is_unique else path.removesuffix(SHARD_SUFFIX) + '/'}{key}.{suffix or 'none'}"
        for (path, key), suffix in keys.items()
    }
    often = Counter(names.values())  # b/c of a.tar, and c of a/b.tar
    paths = [name if often[name] == 1 else f"{path}/{key}" for (path, key), name in names.items()]
    return dict(zip(keys, example_ids(paths), strict=True))


def _skipped(split: SplitName, listed: Sequence[_Listed]) -> list[SkippedExample]:
    """Those of the split that cannot be used."""
    return [
        SkippedExample(
            example_id=each.example_id,
            split=split,
            ordinal=each.ordinal,
            label=each.sample.given_label,
            reason=f"{each.shard}: {each.sample.problem}",
        )
        for each in listed
        if each.sample.problem is not None
    ]


def _add(index: ShardIndex, listed: _Listed, split: SplitName, options: IndexOptions) -> None:
    sample = listed.sample
    assert sample.place is not None
    assert sample.given_label is not None
    clean_label = sample.given_label if options.are_clean else sample.clean_label
    index.add(
        SourceExample(listed.example_id, sample.key, sample.suffix, split, sample.given_label, clean_label),
        listed.ordinal,
        sample.place,
    )


def _entry(path: str, shard: ForeignShard, num_examples: int, index: bytes) -> Shard:
    index_path = f"{path.removesuffix(SHARD_SUFFIX)}{INDEX_SUFFIX}"
    return Shard(
        path=path,
        size_bytes=shard.size_bytes,
        sha256=shard.sha256,
        num_examples=num_examples,
        index=FileEntry(path=index_path, size_bytes=len(index), sha256=hashlib.sha256(index).hexdigest()),
    )


def _manifest(
    listed: Mapping[SplitName, Sequence[_Listed]], entries: Mapping[str, Shard], options: IndexOptions
) -> Manifest:
    classes = options.labels.classes
    listing = hashlib.sha256(repr(classes).encode())
    splits: dict[str, Split] = {}
    skipped: list[SkippedExample] = []
    for split, of_split in listed.items():
        good = [each.sample for each in of_split if each.sample.problem is None]
        if not good:
            raise ValueError(f"split {split!r}: none of its {len(of_split):,} samples can be used")
        counts = Counter(sample.given_label for sample in good)
        clean = sum(options.are_clean or sample.clean_label is not None for sample in good)
        splits[split] = Split(
            num_examples=len(good),
            num_listed=len(of_split),
            class_counts=tuple(counts[label] for label in range(len(classes))),
            num_clean_labels=clean,
            shards=tuple(entries[path] for path in dict.fromkeys(each.shard for each in of_split) if path in entries),
        )
        for each in of_split:
            sample = each.sample
            listing.update(repr((each.example_id, split, sample.given_label, sample.clean_label)).encode())
        skipped += _skipped(split, of_split)
    recipe = Recipe(
        source=options.name,
        listing_sha256=listing.hexdigest(),
        seed=0,
        shard_size=max(shard.num_examples for shard in entries.values()),
        corruption=None,
        owns_shards=False,
    )
    return Manifest(name=options.name, classes=classes, splits=splits, skipped=tuple(skipped), recipe=recipe)


def _write(storage: Storage, manifest: Manifest, indexes: Mapping[FileEntry, bytes], options: IndexOptions) -> bool:
    """The manifest last: while it is away, there is no data set. False: all this stood there already."""
    if storage.exists(MANIFEST_FILE) and not options.force:
        standing = Manifest.load(f"{storage.url}/{MANIFEST_FILE}")
        if standing.digest != manifest.digest:
            raise ValueError(other_data_set(storage.url, standing.name))
        damaged = [entry for entry in indexes if file_problem(storage, entry)]
        for entry in damaged:
            storage.write(entry.path, indexes[entry])
        return bool(damaged)
    storage.delete(MANIFEST_FILE)
    for entry, content in indexes.items():
        storage.write(entry.path, content)
    manifest.save(storage)
    return True
