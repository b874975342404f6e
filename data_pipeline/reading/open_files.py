"""A bounded number of open files, shared by threads: a data set has more shards than a process may have files open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _File:
    descriptor: int
    num_users: int = 1
    """The pool is one of them; the last one closes it."""


class OpenFiles:
    """Descriptors of files by their number; the `max_open` borrowed last are kept open."""

    def __init__(self, open_file: Callable[[int], int | None], max_open: int) -> None:
        self._open_file, self._max_open = open_file, max_open
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, number: int) -> Iterator[int | None]:
        """The file's descriptor, open until the block ends; None where `open_file` gives none."""
        file = self._take(number)
        try:
            yield None if file is None else file.descriptor
        finally:
            if file is not None:
                with self._lock:
                    _leave(file)

    def forget(self, number: int) -> None:
        """Open the file anew when it is borrowed next."""
        with self._lock:
            if number in self._files:
                _leave(self._files.pop(number))

    def keep_only(self, numbers: Iterable[int]) -> None:
        """Close the files of all other numbers."""
        with self._lock:
            for number in self._files.keys() - set(numbers):
                _leave(self._files.pop(number))

    def close(self) -> None:
        """Close all files, those in use as soon as they are given back; none is kept open from now on."""
        self._max_open = 0
        self.keep_only(())

    def _take(self, number: int) -> _File | None:
        with self._lock:
            file = self._files.get(number)
            if file is not None:
                self._files.move_to_end(number)
                file.num_users += 1
                return file
        descriptor = self._open_file(number)  # may take a while on a network's disk: others need not wait
        if descriptor is None:
            return None
        file = _File(descriptor, num_users=2)
        with self._lock:
            if number in self._files:  # another thread was faster
                _leave(self._files.pop(number))
            self._files[number] = file
            if len(self._files) > self._max_open:
                _leave(self._files.popitem(last=False)[1])
        return file


def _leave(file: _File) -> None:
    file.num_users -= 1
    if not file.num_users:
        os.close(file.descriptor)
