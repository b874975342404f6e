"""The cache of shards: what it keeps, what it lets go, and what it makes of processes that die."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_pipeline.errors import StorageError
from data_pipeline.manifest import FileEntry
from data_pipeline.reading.cache import CHUNK_BYTES, Fetched, ShardCache, cache_from
from data_pipeline.storage.local import LocalStorage

KB = 1000


class CountingStorage(LocalStorage):
    """A folder that counts what is read of each file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.num_reads: dict[str, int] = {}

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.num_reads[path] = self.num_reads.get(path, 0) + 1
        return super().read_ranges(path, ranges)


@pytest.fixture
def storage(tmp_path: Path) -> CountingStorage:
    (tmp_path / "far away").mkdir()
    return CountingStorage(tmp_path / "far away")


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 100 * KB)


def make(storage: LocalStorage, name: str, size_bytes: int) -> FileEntry:
    content = (name.encode() * size_bytes)[:size_bytes]
    storage.write(name, content)
    return FileEntry(path=name, size_bytes=size_bytes, sha256=hashlib.sha256(content).hexdigest())


def files(cache: ShardCache) -> set[str]:
    return {path.name for path in cache._folder.iterdir()} - {".lock"}


def holds(cache: ShardCache, shard: FileEntry) -> bool:
    descriptor = cache.open(shard)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


@contextmanager
def pinned(cache: ShardCache, shard: FileEntry) -> Iterator[int]:
    descriptor = cache.open(shard)
    assert descriptor is not None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def age(cache: ShardCache, *shards: FileEntry) -> None:
    """Make the last use of these long ago, the first one's longest."""
    for seconds, shard in enumerate(shards):
        os.utime(cache._folder / shard.sha256, (1000 + seconds, 1000 + seconds))


def test_a_shard_is_fetched_once_and_read_from_disk(cache: ShardCache, storage: CountingStorage) -> None:
    shard = make(storage, "a.tar", 40 * KB)
    assert not holds(cache, shard)
    assert [cache.fetch(shard, storage) for _ in range(2)] == [Fetched.HERE, Fetched.HERE]
    assert storage.num_reads == {"a.tar": 1}
    with pinned(cache, shard) as descriptor:
        assert os.pread(descriptor, shard.size_bytes + 1, 0) == storage.read("a.tar")
    assert files(cache) == {shard.sha256}


def test_a_large_shard_comes_in_pieces(tmp_path: Path, storage: CountingStorage) -> None:
    shard = make(storage, "a.tar", CHUNK_BYTES * 2 + 5)
    cache = ShardCache(tmp_path / "cache", 10**9)
    assert cache.fetch(shard, storage) is Fetched.HERE
    assert storage.num_reads == {"a.tar": 3}
    assert (cache._folder / shard.sha256).read_bytes() == storage.read("a.tar")


def test_equal_shards_of_two_data_sets_are_one(cache: ShardCache, storage: CountingStorage) -> None:
    shard = make(storage, "a.tar", 40 * KB)
    assert cache.fetch(shard, storage) is Fetched.HERE
    assert holds(cache, shard.model_copy(update={"path": "of/another.tar"}))


def test_what_was_used_longest_ago_goes_first(cache: ShardCache, storage: CountingStorage) -> None:
    old, older, new = (make(storage, name, 40 * KB) for name in ("old", "older", "new"))
    cache.fetch(old, storage)
    cache.fetch(older, storage)
    age(cache, older, old)
    assert cache.fetch(new, storage) is Fetched.HERE
    assert files(cache) == {old.sha256, new.sha256}


def test_to_open_a_shard_is_to_use_it(cache: ShardCache, storage: CountingStorage) -> None:
    first, second, third = (make(storage, name, 40 * KB) for name in "abc")
    cache.fetch(first, storage)
    cache.fetch(second, storage)
    age(cache, first, second)
    assert holds(cache, first)
    cache.fetch(third, storage)
    assert files(cache) == {first.sha256, third.sha256}


def test_what_is_open_is_not_removed(cache: ShardCache, storage: CountingStorage) -> None:
    in_use, idle, new = (make(storage, name, 40 * KB) for name in ("in use", "idle", "new"))
    cache.fetch(in_use, storage)
    cache.fetch(idle, storage)
    with pinned(cache, in_use):
        age(cache, in_use, idle)
        assert cache.fetch(new, storage) is Fetched.HERE
        assert files(cache) == {in_use.sha256, new.sha256}


def test_nothing_goes_when_that_makes_no_room(cache: ShardCache, storage: CountingStorage) -> None:
    in_use, idle = make(storage, "in use", 40 * KB), make(storage, "idle", 40 * KB)
    cache.fetch(in_use, storage)
    cache.fetch(idle, storage)
    with pinned(cache, in_use):
        assert cache.fetch(make(storage, "large", 61 * KB), storage) is Fetched.NO_ROOM
        assert cache.fetch(make(storage, "just fits", 60 * KB), storage) is Fetched.HERE
    assert cache.fetch(make(storage, "too large for all", 101 * KB), storage) is Fetched.NO_ROOM
    assert sum((cache._folder / name).stat().st_size for name in files(cache)) == 100 * KB
    assert "large" not in storage.num_reads


def test_only_its_own_files_count_and_go(cache: ShardCache, storage: CountingStorage) -> None:
    (cache._folder / "thesis.tex").write_bytes(bytes(500 * KB))
    (cache._folder / "folder").mkdir()
    for name in "abc":
        assert cache.fetch(make(storage, name, 60 * KB), storage) is Fetched.HERE
    assert {"thesis.tex", "folder"} < files(cache)
    assert len(files(cache)) == 3


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"x" + content[1:]])
def test_what_is_not_as_the_manifest_says_is_not_kept(
    cache: ShardCache, storage: CountingStorage, damage: Callable[[bytes], bytes]
) -> None:
    shard = make(storage, "a.tar", 40 * KB)
    storage.write("a.tar", damage(storage.read("a.tar")))
    assert cache.fetch(shard, storage) is Fetched.DAMAGED
    assert files(cache) == set()


def test_a_storage_that_fails_leaves_nothing(cache: ShardCache, storage: CountingStorage) -> None:
    class Away(LocalStorage):
        def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
            raise StorageError("away")

    shard = make(storage, "a.tar", 40 * KB)
    with pytest.raises(StorageError):
        cache.fetch(shard, Away(Path(storage.url)))
    with pytest.raises(FileNotFoundError):
        cache.fetch(shard.model_copy(update={"path": "b.tar"}), storage)
    assert files(cache) == set()
    assert cache.fetch(shard, storage) is Fetched.HERE


def test_stops_when_asked(cache: ShardCache, storage: CountingStorage) -> None:
    shard = make(storage, "a.tar", 40 * KB)
    assert cache.fetch(shard, storage, should_stop=lambda: True) is Fetched.STOPPED
    assert files(cache) == set()


def test_a_shard_that_rotted_is_fetched_again(cache: ShardCache, storage: CountingStorage) -> None:
    shard = make(storage, "a.tar", 40 * KB)
    cache.fetch(shard, storage)
    cache.discard(shard)
    cache.discard(shard)
    assert not holds(cache, shard)
    cache.fetch(shard, storage)
    (cache._folder / shard.sha256).write_bytes(b"cut")
    assert not holds(cache, shard)
    assert cache.fetch(shard, storage) is Fetched.HERE
    assert holds(cache, shard)


def test_what_cannot_be_removed_stays(cache: ShardCache, storage: CountingStorage) -> None:
    """Its examples are read from the storage then."""
    shard = make(storage, "a.tar", 40 * KB)
    cache.fetch(shard, storage)
    (cache._folder / ".lock").unlink()
    (cache._folder / ".lock").mkdir()  # nobody can take this lock, as in a folder that may only be read
    cache.discard(shard)
    assert holds(cache, shard)


class Halting(LocalStorage):
    """Says when it is asked, and then does not answer."""

    def __init__(self, folder: Path, asked: str) -> None:
        super().__init__(folder)
        self._asked = asked

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        Path(self._asked).touch()
        signal.pause()
        raise AssertionError("not reached")


def fetch_and_halt(cache: ShardCache, shard: FileEntry, folder: str, asked: str) -> None:
    cache.fetch(shard, Halting(Path(folder), asked))


def test_a_process_that_is_killed_leaves_a_part_that_gives_way(
    cache: ShardCache, storage: CountingStorage, tmp_path: Path
) -> None:
    shard, other = make(storage, "a.tar", 60 * KB), make(storage, "b.tar", 60 * KB)
    asked = tmp_path / "asked"
    process = multiprocessing.get_context("spawn").Process(
        target=fetch_and_halt, args=(cache, shard, storage.url, str(asked))
    )
    process.start()
    try:
        while not asked.exists():
            assert process.is_alive()
            time.sleep(0.01)
        assert cache.fetch(shard, storage) is Fetched.BUSY
        assert cache.fetch(other, storage) is Fetched.NO_ROOM  # the bytes on their way have theirs
    finally:
        process.kill()
        process.join()
    assert files(cache) == {f"{shard.sha256}.part"}
    assert cache.fetch(other, storage) is Fetched.HERE
    assert files(cache) == {other.sha256}
    assert cache.fetch(shard, storage) is Fetched.HERE
    assert files(cache) == {shard.sha256}


def fetch_all(cache: ShardCache, shards: list[FileEntry], folder: str, rounds: int) -> None:
    storage = LocalStorage(Path(folder))
    for number in range(rounds):
        for shard in shards[number:] + shards[:number]:
            assert cache.fetch(shard, storage) in {Fetched.HERE, Fetched.BUSY, Fetched.NO_ROOM}
            descriptor = cache.open(shard)
            if descriptor is not None:
                assert hashlib.sha256(os.pread(descriptor, 10**6, 0)).hexdigest() == shard.sha256
                os.close(descriptor)
            with cache._deciding():
                assert sum(path.stat().st_size for path in cache._folder.iterdir()) <= cache.max_bytes


def test_processes_share_a_cache_too_small_for_them(cache: ShardCache, storage: CountingStorage) -> None:
    shards = [make(storage, f"{number}.tar", 20 * KB + number) for number in range(8)]
    processes = [
        multiprocessing.get_context("spawn").Process(target=fetch_all, args=(cache, shards, storage.url, 20))
        for _ in range(3)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    assert not list(cache._folder.glob("*.part"))
    assert 1 <= len(files(cache)) <= 4


def test_settings_of_the_machine(tmp_path: Path) -> None:
    assert cache_from({}) is None
    assert cache_from({"HUSH_CACHE_DIR": "", "HUSH_CACHE_BYTES": "nonsense"}) is None
    folder = tmp_path / "deep" / "er"
    cache = cache_from({"HUSH_CACHE_DIR": str(folder), "HUSH_CACHE_BYTES": "5000"})
    assert cache is not None
    assert cache.max_bytes == 5000
    assert folder.stat().st_mode & 0o077 == 0
    for wrong in ("0", "-1", "1e9", "ten", "٣"):
        with pytest.raises(ValueError, match=r"HUSH_CACHE_BYTES = .* must be a whole number of bytes, above 0"):
            cache_from({"HUSH_CACHE_DIR": str(folder), "HUSH_CACHE_BYTES": wrong})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"HUSH_CACHE_DIR = .* cannot be made"):
        cache_from({"HUSH_CACHE_DIR": str(tmp_path / "file" / "cache")})
