"""What a job that was really trained leaves, put where a stand-in driver has left next to nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from service_stand_ins import RunningService

from tests.training import context_for, digits_spec, train_alone


def leave_results(service: RunningService, job_id: str, manifest: Path, folder: Path) -> Path:
    """Train on `manifest` in `folder`, which must not be there, and copy all into the job's first attempt; its path."""
    folder.mkdir()
    train_alone(context_for(digits_spec(manifest), folder))
    attempt = service.settings.storage_dir / "jobs" / job_id / "attempt-1"
    shutil.copytree(folder, attempt, dirs_exist_ok=True)
    return attempt
