"""What a process prints, kept in a file of the attempt's folder: logs/rank_0000.log, logs/driver.log.

Standard output and error are redirected below Python, so that what native code prints is there too. They are the file
itself and no pipe: the last words of a process that is killed are in it. The next start of the rank writes on.

A process that prints without end must not fill the disk. Twice a second its log is looked at; one of more than
MAX_BYTES loses its middle, and a line says how much that was.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from trainer.run_schema import LOGS_DIR

MAX_BYTES = 64 << 20
"""A log that is longer loses its middle."""
KEPT_BYTES = 16 << 20
"""How much of its beginning, and how much of its end, such a log keeps."""
CHECK_INTERVAL_S = 0.5

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def rank_log(run_dir: Path, rank: int) -> Path:
    """Log of a rank."""
    return run_dir / LOGS_DIR / f"rank_{rank:04d}.log"


def driver_log(run_dir: Path) -> Path:
    """Log of the driver, which starts the ranks."""
    return run_dir / LOGS_DIR / "driver.log"


def opening_line(who: str, now: datetime) -> str:
    """The line that each start of a process writes first: when, who, where."""
    return f"=== {now.isoformat(timespec='seconds')} {who} on {socket.gethostname()}, process {os.getpid()} ===\n"


@contextmanager
def output_kept_in(path: Path, who: str) -> Iterator[None]:
    """Append all that this process prints to a file while the block runs; `who` names it in the first line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.write(log, opening_line(who, datetime.now(UTC)).encode())
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    finished = threading.Event()
    watch = threading.Thread(target=_keep_bounded, args=(path, finished), name="hush-output-log", daemon=True)
    _point_output_at(log, log)
    watch.start()
    try:
        yield
    finally:
        _point_output_at(*before)
        finished.set()
        watch.join()
        for descriptor in (log, *before):
            os.close(descriptor)


def log_plainly() -> None:
    """Have Python's logging write to standard error: ours from INFO, that of others from WARNING."""
    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT, force=True)
    for name in ("trainer", "data_pipeline"):
        logging.getLogger(name).setLevel(logging.INFO)


def drop_middle(path: Path, kept_bytes: int) -> None:
    """Shorten a log in place to its first and last `kept_bytes`; a process that appends to it need not know.

    What is written to it in this very moment may be lost too.
    """
    with path.open("r+b") as log:
        size_bytes = log.seek(0, os.SEEK_END)
        log.seek(size_bytes - kept_bytes)
        end = log.read()
        end = end[end.find(b"\n") + 1 :]
        log.truncate(kept_bytes)
    note = f"\n=== {size_bytes - kept_bytes - len(end)} bytes are left out here: the log had become too long ===\n"
    with path.open("ab") as log:
        log.write(note.encode() + end)


def _keep_bounded(path: Path, finished: threading.Event) -> None:
    while not finished.wait(CHECK_INTERVAL_S):
        with contextlib.suppress(OSError):  # a disk that is full or away: the next look will tell
            if path.stat().st_size > MAX_BYTES:
                drop_middle(path, KEPT_BYTES)


def _point_output_at(out: int, err: int) -> None:
    """Let descriptors 1 and 2 mean these files; what Python holds back goes where it was meant to, line by line."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    os.dup2(out, 1)
    os.dup2(err, 2)
