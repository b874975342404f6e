"""What the loop tells the outside while it runs, and the one thing it hears back."""

from __future__ import annotations

from typing import Protocol

from trainer.run_schema import EpochSummary, Progress


class Supervisor(Protocol):
    """Watches a run: over HTTP (trainer.heartbeat), on a terminal (trainer.console), or not at all (Unsupervised)."""

    @property
    def stop_requested(self) -> bool:
        """Whether the run is to stop at the next step. Only rank 0's answer counts."""

    def progress(self, progress: Progress) -> None:
        """Where the run stands; called about once a second, must not block."""

    def epoch_finished(self, summary: EpochSummary) -> None:
        """An epoch's files are written and checkpointed. Called on every rank."""


class Unsupervised:
    """Nobody watches: ranks other than 0, and tests."""

    stop_requested = False

    def progress(self, progress: Progress) -> None:
        """Nobody to tell."""

    def epoch_finished(self, summary: EpochSummary) -> None:
        """Nobody to tell."""
