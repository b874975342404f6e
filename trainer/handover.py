"""A spare: a driver with its ranks that is started before there is an attempt for it, and is handed one later.

All that passes between the service and a spare is one file in the spare's folder, which the service puts there whole,
by link(2): the first link wins, so that a spare never gets two attempts. It names the attempt, or none: then the spare
ends. A spare serves once. One that fails while it waits puts the file there itself, so that nobody hands it an attempt
while it ends.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from data_pipeline.storage.atomic_file import write_aside
from trainer.run_schema import HANDOVER_FILE, Handover

POLL_S = 0.02


def handed_over(spare_dir: Path) -> Handover | None:
    """What the spare was handed; None if it waits still."""
    try:
        return Handover.model_validate_json((spare_dir / HANDOVER_FILE).read_bytes())
    except FileNotFoundError:
        return None


def wait_for_handover(spare_dir: Path) -> Handover:
    """Wait, for ever if need be: ranks that wait die with their driver."""
    while (handover := handed_over(spare_dir)) is None:
        time.sleep(POLL_S)
    return handover


def decline(spare_dir: Path) -> None:
    """Take no attempt from now on; nothing where one was handed over before."""
    path, word = spare_dir / HANDOVER_FILE, Handover(attempt_dir=None, is_declined=True).model_dump_json()
    aside = write_aside(path, lambda aside: aside.write_text(word))
    with contextlib.suppress(FileExistsError):
        os.link(aside, path)
    aside.unlink()
