"""Launcher that keeps a spare: a driver whose ranks are up, with everything imported, before there is an attempt.

For one machine that belongs to one service (`hush serve`): spares hold next to none of Ray's resources, since the
service's own queue counts them. An attempt that a spare fits is handed to it and begins at once; every other one, those
on GPUs among them, gets a driver of its own as ever. A spare serves one attempt, so that isolating and killing are as
ever too; then the next one is started, once the attempt has made its first step.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path

from service.cluster.launcher import (
    CommandLauncher,
    DriverStatus,
    LauncherUnavailableError,
    LaunchRejectedError,
    Node,
    Phase,
)
from service.cluster.spares import COLD, Launch, Spare, Spares
from trainer.run_schema import ATTEMPT_FILE, TIMELINE_FILE, AttemptContext

INTERVAL_S = 1.0
"""Seconds between two looks at the spares."""
MAX_DEAD_SPARES = 3
"""So many that end while they wait, one after the other, and no more are started before the next submission."""
LIVES = frozenset({Phase.PENDING, Phase.RUNNING})

logger = logging.getLogger(__name__)


def spare_command(python: Path, spare: Spare) -> list[str]:
    """The command line of a spare."""
    return [str(python), "-m", "trainer.ray_entry", "--spare", str(spare.folder), str(spare.num_workers)]


def fitting_workers(run_dir: Path) -> int | None:
    """How many ranks a spare must have for an attempt; None: no spare fits, as its ranks need GPUs."""
    resources = AttemptContext.model_validate_json((run_dir / ATTEMPT_FILE).read_bytes()).spec.resources
    return None if resources.gpus_per_worker else resources.num_workers


def has_stepped(run_dir: Path) -> bool:
    """Whether an attempt has made its first step: from there on it no longer waits for the processors."""
    try:
        return '"first_step"' in (run_dir / TIMELINE_FILE).read_text()
    except FileNotFoundError:
        return False


class WarmLauncher:
    """Runs drivers by another launcher, in a spare where there is one that fits."""

    def __init__(self, launcher: CommandLauncher, python: Path, spares: Spares, num_workers: int = 1) -> None:
        """No spare is started before `keep`; the first has `num_workers` ranks, later ones as many as the last job."""
        self._launcher, self._python, self._spares = launcher, python, spares
        self._num_workers = num_workers
        self._lock = threading.Lock()
        self._starting: dict[str, Path] = {}
        self._num_dead = 0
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._run, name="spares", daemon=True)

    def keep(self) -> None:
        """Begin to keep a spare, in a thread."""
        self._keeper.start()

    def nodes(self) -> Sequence[Node]:
        """The cluster's living machines."""
        return self._launcher.nodes()

    def submit(self, submission_id: str, run_dir: Path) -> None:
        """Hand the attempt to a spare that fits and lives, else start a driver; asked again, do the same again."""
        num_workers = fitting_workers(run_dir)
        launch = self._spares.launch_of(submission_id)
        if launch is None:
            launch = self._choose(submission_id, num_workers)
        elif launch.spare is not None and self._launcher.status(launch.spare).phase not in LIVES:
            self._spares.hand_over(launch.spare, None)  # if it died before it had the attempt, it never gets it
        if launch.spare is None or not self._spares.hand_over(launch.spare, run_dir):
            self._spares.decide(submission_id, COLD)
            self._launcher.submit(submission_id, run_dir)
        with self._lock:
            self._starting[submission_id] = run_dir
            self._num_workers = num_workers or self._num_workers
            self._num_dead = 0

    def status(self, submission_id: str) -> DriverStatus:
        """What became of a driver."""
        return self._launcher.status(self._name_of(submission_id))

    def stop(self, submission_id: str) -> None:
        """Ask a driver to end."""
        self._launcher.stop(self._name_of(submission_id))

    def close(self) -> None:
        """Send the spares home that wait, and let go of connections; what runs goes on."""
        self._closing.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for spare in self._spares.waiting():
            self._spares.hand_over(spare.id, None)
        self._launcher.close()

    def keep_once(self) -> None:
        """Settle spares that have ended or have their attempt; start one if none is fit and nothing else starts."""
        kept = [spare for spare in self._spares.open() if self._is_kept(spare)]
        if not kept and self._num_dead < MAX_DEAD_SPARES and not self._anything_starts() and self.nodes():
            spare = self._spares.create(f"spare-{secrets.token_hex(8)}", self._num_workers)
            self._launcher.start(spare.id, spare_command(self._python, spare))

    def _name_of(self, submission_id: str) -> str:
        launch = self._spares.launch_of(submission_id)
        return submission_id if launch is None or launch.spare is None else launch.spare

    def _choose(self, submission_id: str, num_workers: int | None) -> Launch:
        for spare in self._spares.waiting():
            if spare.num_workers == num_workers and self._launcher.status(spare.id).phase in LIVES:
                return self._spares.decide(submission_id, Launch(spare=spare.id))
        return self._spares.decide(submission_id, COLD)

    def _is_kept(self, spare: Spare) -> bool:
        """Whether a spare waits, and for the attempts that are to be expected."""
        if self._spares.has_attempt(spare):
            self._spares.settle(spare)
            return False
        was_sent_home = self._spares.was_sent_home(spare)
        if self._launcher.status(spare.id).phase not in LIVES:
            self._num_dead += not was_sent_home
            self._spares.settle(spare)
            return False
        if not was_sent_home and spare.num_workers != self._num_workers:
            self._spares.hand_over(spare.id, None)
            return False
        return not was_sent_home

    def _anything_starts(self) -> bool:
        """Whether an attempt is on its way to its first step: a spare would take its processors."""
        with self._lock:
            starting = dict(self._starting)
        for submission_id, run_dir in starting.items():
            if not has_stepped(run_dir) and self.status(submission_id).phase in LIVES:
                return True
            with self._lock:
                self._starting.pop(submission_id, None)
        return False

    def _run(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            try:
                self.keep_once()
            except LauncherUnavailableError as error:
                logger.debug("no spare for now, because the cluster does not answer: %s", error)
            except LaunchRejectedError as error:
                logger.warning("no more spares: %s", error)
                return
            except Exception:
                logger.exception("the spares could not be looked after")
