"""Where an attempt's start-up time goes: a line in its folder for each moment on the way to the first step.

Costs a write of a hundred bytes each, some seven an attempt. `make bench-start` reads it, and so can anybody whose jobs
start slowly; the service reads the last of them, to know when a start is over.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Literal

from trainer.run_schema import TIMELINE_FILE

Moment = Literal["driver", "ray_connected", "train_imported", "rank_started", "waiting", "handed_over", "first_step"]


def mark(folder: str | Path, moment: Moment) -> None:
    """Append a moment, which is now. Lines of several processes do not mix: each is one write at the file's end."""
    line = json.dumps({"moment": moment, "time_s": time.time(), "pid": os.getpid()}) + "\n"
    file = os.open(Path(folder) / TIMELINE_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
