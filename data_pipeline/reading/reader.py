"""The bytes of examples, read from their shards by offset and checked. Safe to share between threads.

Shards of a local data set, and those of a remote one that the cache holds, are files. What is not in the cache is asked
for by ranges, many examples a request: nobody waits for a whole shard. A storage that is away is a StorageError and
never a bad example: which examples are skipped must not depend on the network.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import BadImageError, StorageError
from data_pipeline.examples import ExampleTable
from data_pipeline.reading.cache import Fetched, ShardCache
from data_pipeline.reading.open_files import OpenFiles
from data_pipeline.reading.prefetch import Prefetcher
from data_pipeline.storage.local import LocalStorage

MAX_OPEN_FILES = 128
NUM_REQUESTS = 32
"""Shards that are asked for examples at a time: a request costs a round trip, and hardly any work here."""
_NOT_OF_THE_DATA = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
"""Errors of a process, a machine or a network's disk."""


class _Place(NamedTuple):
    """Where an image lies in its shard, and the xxh3-64 of its bytes."""

    offset: int
    length: int
    checksum: int


class ShardReader:
    """Reads examples of one table by row; `cache` is for tables of remote data sets."""

    def __init__(self, table: ExampleTable, cache: ShardCache | None = None) -> None:
        self._table = table
        self._cache = None if isinstance(table.storage, LocalStorage) else cache
        self._files = OpenFiles(self._open, MAX_OPEN_FILES)
        self._requests = ThreadPoolExecutor(NUM_REQUESTS, thread_name_prefix="hush-request")  # starts none until asked
        self._suspects: set[int] = set()
        """Shards whose bytes in the cache were not as the index says."""
        self._away: StorageError | None = None
        """Why a request failed. Others that wait their turn would be as patient one after the other, for hours."""
        self._prefetched: Sequence[int] = ()
        self._prefetcher = None if self._cache is None else Prefetcher(self._fetch)
        if self._cache is not None and sum(shard.size_bytes for shard in table.shard_files) <= self._cache.max_bytes:
            # All fit. Each process begins elsewhere, so that those of one machine fetch different shards.
            self.prefetch(np.random.default_rng(os.getpid()).permutation(len(table.shard_files)).tolist())

    @property
    def can_prefetch(self) -> bool:
        """Whether shards are remote and there is a cache for them."""
        return self._prefetcher is not None

    def prefetch(self, shards: Sequence[int]) -> None:
        """Bring these into the cache and keep them there, the first ones first, in place of those of the last call.
        Returns at once; without a cache it does nothing."""
        if self._prefetcher is not None and shards != self._prefetched:
            self._prefetched = shards
            self._files.keep_only(shards)
            self._prefetcher.want(shards)

    def read(self, row: int) -> bytes:
        """Bytes of the image; BadImageError if the shard is away, cut short, or its bytes have changed."""
        content = self.read_many([row])[0]
        if isinstance(content, BadImageError):
            raise content
        return content

    def read_many(self, rows: Sequence[int] | NDArray[np.int64]) -> list[bytes | BadImageError]:
        """Bytes of each image, or why it cannot be read. StorageError if the storage is away; it is not asked again."""
        table = self._table
        columns = (table.offsets[rows], table.lengths[rows], table.checksums[rows])
        places = [_Place(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]
        positions: dict[int, list[int]] = defaultdict(list)
        for position, shard in enumerate(table.shard_indices[rows].tolist()):
            positions[shard].append(position)
        contents: dict[int, bytes | BadImageError] = {}
        requests: dict[int, Future[list[bytes | BadImageError]]] = {}
        for shard, here in positions.items():
            wanted = [places[position] for position in here]
            found = self._read_file(shard, wanted)
            if found is None:
                requests[shard] = self._requests.submit(self._read_ranges, shard, wanted)
            else:
                contents.update(zip(here, found, strict=True))
        for shard, request in requests.items():
            contents.update(zip(positions[shard], request.result(), strict=True))
        return [contents[position] for position in range(len(places))]

    def close(self) -> None:
        """Stop prefetching and close the shards."""
        if self._prefetcher is not None:
            self._prefetcher.close()
        self._requests.shutdown(cancel_futures=True)
        self._files.close()

    def _open(self, shard: int) -> int | None:
        """Descriptor of the shard's file; None if a remote shard has none here."""
        table, file = self._table, self._table.shard_files[shard]
        if isinstance(table.storage, LocalStorage):
            return os.open(table.storage.path(file.path), os.O_RDONLY | os.O_CLOEXEC)
        return None if self._cache is None else self._cache.open(file)

    def _fetch(self, shard: int, should_stop: Callable[[], bool]) -> Fetched:
        """For the prefetcher: fetch the shard, and open it, so that it is kept for now."""
        assert self._cache is not None
        with self._files.borrow(shard) as descriptor:
            if descriptor is not None:
                return Fetched.HERE
        fetched = self._cache.fetch(self._table.shard_files[shard], self._table.storage, should_stop)
        if fetched is Fetched.HERE:
            with self._files.borrow(shard):
                pass
        return fetched

    def _read_file(self, shard: int, places: Sequence[_Place]) -> list[bytes | BadImageError] | None:
        """The images from the shard's file; None if there is none here to be trusted, of a remote shard."""
        try:
            with self._files.borrow(shard) as descriptor:
                if descriptor is None:
                    return None
                data = [os.pread(descriptor, place.length, place.offset) for place in places]
        except OSError as error:
            if self._cache is not None:
                return None
            if error.errno in _NOT_OF_THE_DATA:
                raise StorageError(f"shard {self._table.shard_files[shard].path}: {error.strerror}") from None
            return [self._bad(shard, f": {error.strerror}")] * len(places)
        contents = self._checked(shard, places, data)
        if self._cache is not None and any(isinstance(content, BadImageError) for content in contents):
            self._suspects.add(shard)
            return None
        return contents

    def _read_ranges(self, shard: int, places: Sequence[_Place]) -> list[bytes | BadImageError]:
        if self._away is not None:
            raise StorageError(str(self._away))
        try:
            data = self._table.storage.read_ranges(
                self._table.shard_files[shard].path, [(place.offset, place.length) for place in places]
            )
        except FileNotFoundError:
            return [self._bad(shard, f": {os.strerror(errno.ENOENT)}")] * len(places)
        except StorageError as error:
            self._away = error
            raise
        contents = self._checked(shard, places, data)
        if shard in self._suspects and not any(isinstance(content, BadImageError) for content in contents):
            self._drop(shard)
        return contents

    def _drop(self, shard: int) -> None:
        """Remove from the cache what has rotted there: the storage has it whole."""
        assert self._cache is not None
        self._cache.discard(self._table.shard_files[shard])
        self._files.forget(shard)
        self._suspects.discard(shard)

    def _checked(self, shard: int, places: Sequence[_Place], data: Sequence[bytes]) -> list[bytes | BadImageError]:
        def check(place: _Place, content: bytes) -> bytes | BadImageError:
            if len(content) != place.length:
                return self._bad(shard, f" ends inside the image at offset {place.offset}")
            if xxhash.xxh3_64_intdigest(content) != place.checksum:
                return self._bad(shard, f": bytes at offset {place.offset} differ from their checksum")
            return content

        return [check(place, content) for place, content in zip(places, data, strict=True)]

    def _bad(self, shard: int, reason: str) -> BadImageError:
        return BadImageError(f"shard {self._table.shard_files[shard].path}{reason}")
