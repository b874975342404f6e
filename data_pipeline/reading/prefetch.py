"""Brings shards into the cache in the background. Nobody waits for it: what is not here yet is read by ranges."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

from data_pipeline.errors import StorageError
from data_pipeline.reading.cache import Fetched

NUM_THREADS = 4
PAUSE_S = 0.1
"""Before a thread goes on that found a shard to be fetched by another process already."""
JOIN_S = 5.0

log = logging.getLogger(__name__)


class Prefetcher:
    """Threads that fetch the shards that are wanted, in the order in which they are wanted."""

    def __init__(self, fetch: Callable[[int, Callable[[], bool]], Fetched]) -> None:
        """`fetch(shard, should_stop)`."""
        self._fetch = fetch
        self._wanted: deque[int] = deque()
        self._hopeless: set[int] = set()
        self._changed = threading.Condition()
        self._is_closed = False
        # Daemons: a request to a storage that is away must not keep a process from ending.
        self._threads = [
            threading.Thread(target=self._work, name=f"hush-prefetch-{number}", daemon=True)
            for number in range(NUM_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def want(self, shards: Iterable[int]) -> None:
        """Fetch these, the first ones first, in place of those wanted before; what is under way goes on."""
        with self._changed:
            self._wanted = deque(shard for shard in shards if shard not in self._hopeless)
            self._changed.notify_all()

    def close(self) -> None:
        """Stop. A thread that waits for a storage ends with its request, or with the process."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(JOIN_S)

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            try:
                fetched = self._fetch(shard, lambda: self._is_closed)
            except StorageError as error:
                log.warning("not cached yet: %s", error)
                fetched = Fetched.BUSY
            except OSError as error:  # the storage has no such file, or the cache's disk is in trouble
                log.warning("cannot be cached: %s", error)
                fetched = Fetched.DAMAGED
            with self._changed:
                if fetched is Fetched.BUSY and not self._is_closed:
                    self._wanted.append(shard)
                    self._changed.wait(PAUSE_S)
                elif fetched is Fetched.DAMAGED:
                    self._hopeless.add(shard)

    def _next(self) -> int | None:
        with self._changed:
            while not self._wanted and not self._is_closed:
                self._changed.wait()
            return None if self._is_closed else self._wanted.popleft()
