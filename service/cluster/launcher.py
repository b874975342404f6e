"""Launcher: what the reconciler asks of a cluster. A Protocol, because a vendor stands behind it (see ray_launcher)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class LauncherUnavailableError(Exception):
    """The cluster cannot be asked now; nothing is known about what runs on it. Ask again later."""


class AnswerUnusableError(LauncherUnavailableError):
    """The cluster answers, but not to this question now; it may well answer the next."""


class LaunchRejectedError(Exception):
    """The cluster will never accept this attempt; the message says why."""


class Phase(StrEnum):
    """What the cluster says about an attempt's driver."""

    PENDING = "PENDING"
    """Accepted; the driver does not run yet."""
    RUNNING = "RUNNING"
    """The driver runs."""
    SUCCEEDED = "SUCCEEDED"
    """The driver ended without an error; whether the attempt succeeded, its result says."""
    FAILED = "FAILED"
    """The driver ended with an error of its own."""
    STOPPED = "STOPPED"
    """The driver was stopped, by us or from outside."""
    KILLED = "KILLED"
    """The driver was killed: its process, what watches it, or its machine died."""
    LOST = "LOST"
    """The cluster does not know the attempt: its head was restarted since."""


@dataclass(frozen=True)
class DriverStatus:
    """What the cluster says about an attempt's driver, with its last words where it failed."""

    phase: Phase
    message: str | None = None
    is_out_of_memory: bool = False
    """Of a driver that was KILLED: whether the cluster did it because the machine ran out of memory."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, and what it has in all (not: what is free now)."""

    num_cpus: float
    num_gpus: float


class Launcher(Protocol):
    """Runs drivers on a cluster. Every method raises LauncherUnavailableError when the cluster does not answer."""

    def nodes(self) -> Sequence[Node]:
        """The cluster's living machines."""
        ...

    def submit(self, submission_id: str, run_dir: Path) -> None:
        """Start the driver of the attempt in `run_dir`. Asked twice with one id, it starts one driver.

        Raises LaunchRejectedError when the cluster refuses for good.
        """
        ...

    def status(self, submission_id: str) -> DriverStatus:
        """What became of a driver; Phase.LOST for an id that the cluster does not know."""
        ...

    def stop(self, submission_id: str) -> None:
        """Ask a driver to end and kill it soon after. Returns at once; unknown and ended drivers are fine."""
        ...

    def close(self) -> None:
        """Let go of connections; what runs goes on."""
        ...


class CommandLauncher(Launcher, Protocol):
    """A Launcher that also runs drivers which have no attempt yet."""

    def start(self, submission_id: str, argv: Sequence[str]) -> None:
        """Run a command of ours as a driver. Asked twice with one id, it runs once; raises as `submit` does."""
        ...
