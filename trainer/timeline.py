"""Where an attempt's start-up time goes: a line in the run folder for each moment on the way to the first step.

Costs a write of a hundred bytes each, some eight an attempt; `make bench-start` reads it, and so can anybody whose jobs
start slowly.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Final, Literal

TIMELINE_FILE: Final = "timeline.jsonl"

Moment = Literal[
    "driver", "ray_connected", "train_imported", "rank_started", "rank_imported", "group_formed", "first_step"
]


def mark(run_dir: str | Path, moment: Moment) -> None:
    """Append a moment, which is now; lines of several processes do not mix (one write(2), O_APPEND)."""
    line = json.dumps({"moment": moment, "time_s": time.time(), "pid": os.getpid()}) + "\n"
    file = os.open(Path(run_dir) / TIMELINE_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
