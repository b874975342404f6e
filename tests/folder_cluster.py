"""A cluster whose drivers are files, for tests of what is asked of a cluster and what lies on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from service.cluster.launcher import DriverStatus, Node, Phase
from trainer.run_schema import AttemptContext


class FolderCluster:
    """Stands in for a cluster: a driver runs where its file is there, so that another process can have started it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines = [Node(2, 0)]
        folder.mkdir()

    def names(self) -> list[str]:
        return sorted(file.name for file in self.folder.iterdir())

    def nodes(self) -> Sequence[Node]:
        return self.machines

    def submit(self, submission_id: str, run_dir: Path) -> None:
        self.start(submission_id, [str(run_dir)])

    def start(self, submission_id: str, argv: Sequence[str]) -> None:
        (self.folder / submission_id).touch()

    def status(self, submission_id: str) -> DriverStatus:
        return DriverStatus(Phase.RUNNING if (self.folder / submission_id).exists() else Phase.LOST)

    def stop(self, submission_id: str) -> None:
        (self.folder / submission_id).unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is open."""


def attempt_in(folder: Path, **resources: object) -> Path:
    folder.mkdir()
    spec = {"name": "x", "data": {"manifest": "/m"}, "resources": resources}
    context = AttemptContext.model_validate({"job_id": "1", "attempt": 1, "spec": spec, "run_dir": str(folder)})
    (folder / "attempt.json").write_text(context.model_dump_json())
    return folder
