"""All processes that descend from one, wherever they went: each inherits a mark in its environment."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

MARK = "HUSH_TEST_MARK"


def marked(mark: str) -> list[psutil.Process]:
    """Living processes with this mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_until(condition: Callable[[], bool], what: str | Callable[[], str], timeout_s: float = 90) -> None:
    """Wait for something that must come to pass."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else f"not in time: {what}"
        time.sleep(0.1)
