"""What the loop tells the outside while it runs, and the one thing it hears back."""

from __future__ import annotations

from typing import Final, Literal, Protocol

from trainer.run_schema import EpochSummary, Progress

Order = Literal["continue", "stop", "abort"]
"""To go on; to end at the next step after a last checkpoint; to end at the next step and leave nothing more."""
ORDERS: Final[tuple[Order, ...]] = ("continue", "stop", "abort")


class Supervisor(Protocol):
    """Watches a run: over HTTP (trainer.heartbeat), on a terminal (trainer.console), or not at all (Unsupervised)."""

    @property
    def order(self) -> Order:
        """What the run is to do at its next step. Only rank 0's answer counts."""

    def began(self, finished_epochs: tuple[EpochSummary, ...]) -> None:
        """The run folder is ready; a run that was taken up again had these epochs. Called once, before any step."""

    def progress(self, progress: Progress) -> None:
        """Where the run stands; called on rank 0 about once a second, must not block."""

    def epoch_finished(self, summary: EpochSummary) -> None:
        """An epoch's files are written and checkpointed. Called on every rank."""


class Unsupervised:
    """Nobody watches: ranks other than 0, and tests."""

    order: Order = "continue"

    def began(self, finished_epochs: tuple[EpochSummary, ...]) -> None:
        """Nobody to tell."""

    def progress(self, progress: Progress) -> None:
        """Nobody to tell."""

    def epoch_finished(self, summary: EpochSummary) -> None:
        """Nobody to tell."""
