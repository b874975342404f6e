"""The bytes of an example, read from its shard by offset and checked. Safe to share between threads."""

from __future__ import annotations

import os
import threading

import xxhash

from data_pipeline.errors import BadImageError
from data_pipeline.examples import ExampleTable


class ShardReader:
    """Reads examples of one table by row. Each shard is opened once, at its first use."""

    def __init__(self, table: ExampleTable) -> None:
        self._table = table
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, row: int) -> bytes:
        """Bytes of the image; BadImageError if the shard is away, cut short, or its bytes have changed."""
        table = self._table
        shard = int(table.shard_indices[row])
        length, offset = int(table.lengths[row]), int(table.offsets[row])
        try:
            data = os.pread(self._descriptor(shard), length, offset)
        except OSError as error:
            raise BadImageError(f"shard {table.shard_names[shard]}: {error.strerror}") from None
        if len(data) != length:
            raise BadImageError(f"shard {table.shard_names[shard]} ends inside the image at offset {offset}")
        if xxhash.xxh3_64_intdigest(data) != int(table.checksums[row]):
            raise BadImageError(
                f"shard {table.shard_names[shard]}: bytes at offset {offset} differ from their checksum"
            )
        return data

    def close(self) -> None:
        """Close the shards."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _descriptor(self, shard: int) -> int:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            with self._lock:
                descriptor = self._descriptors.get(shard)
                if descriptor is None:
                    descriptor = os.open(self._table.shard_paths[shard], os.O_RDONLY | os.O_CLOEXEC)
                    self._descriptors[shard] = descriptor
        return descriptor
