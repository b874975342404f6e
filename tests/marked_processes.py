"""All processes that descend from one, wherever they went: each inherits a mark in its environment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import psutil

MARK = "HUSH_TEST_MARK"


def marked(mark: str, what: str = "") -> list[psutil.Process]:
    """Living processes with this mark, whose command line contains `what`."""
    found = []
    for process in psutil.process_iter():
        try:
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            if is_alive and process.environ().get(MARK) == mark and what in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def kill_marked(mark: str, what: str = "") -> None:
    """Kill them; some may end by themselves meanwhile."""
    for process in marked(mark, what):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def listening(mark: str) -> list[tuple[str, int]]:
    """(IP, port) of every TCP socket that they listen on."""
    found = []
    for process in marked(mark):
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections("tcp")
            found += [tuple(one.laddr) for one in connections if one.status == psutil.CONN_LISTEN]
    return found


def wait_until(condition: Callable[[], bool], what: str | Callable[[], str], timeout_s: float = 90) -> None:
    """Wait for something that must come to pass."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else f"not in time: {what}"
        time.sleep(0.1)
