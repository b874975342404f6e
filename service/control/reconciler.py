"""The reconciler: compares what the store wants with what the cluster has, decides, then executes; again and again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import assert_never

from service.cluster.attempts import AttemptFolders, result_written_at, verified_result
from service.cluster.launcher import DriverStatus, Launcher, LauncherUnavailableError, LaunchRejectedError, Phase
from service.control.decisions import Action, Launch, Move, Policy, Seen, Stop, decide, needs_asking, plan_queue
from service.jobs.ids import submission_id
from service.jobs.records import AttemptRecord, JobRecord, LiveJob, StaleTransitionError, Transition
from service.jobs.states import JobState, Reason
from service.store.store import Store

logger = logging.getLogger(__name__)

WAITING = frozenset({JobState.QUEUED, JobState.RECOVERING})


@dataclass(frozen=True)
class World:
    """Everything the reconciler acts upon."""

    store: Store
    launcher: Launcher
    folders: AttemptFolders
    policy: Policy


def reconcile_once(now: datetime, world: World) -> None:
    """Look at every live job once and do what is due."""
    lives = world.store.live()
    for live in lives:
        if live.job.state not in WAITING:
            with _one_job(live):
                _attend(live, now, world)
    if not any(live.job.state in WAITING for live in lives):
        return
    try:
        nodes = world.launcher.nodes()
    except LauncherUnavailableError as error:
        logger.info("jobs wait, because the cluster does not answer: %s", error)
        return
    for live, move in plan_queue(world.store.live(), nodes):
        with _one_job(live):
            job = _move(live.job, move, now, world.store)
            if job.state is JobState.STARTING:
                _launch(job, live.attempt, now, world)


@contextmanager
def _one_job(live: LiveJob) -> Iterator[None]:
    """One job's trouble never keeps the others from their turn; what failed is tried again at the next look."""
    try:
        yield
    except StaleTransitionError as error:
        logger.debug("overtaken: %s", error)
    except LauncherUnavailableError as error:
        logger.info("job %s waits, because the cluster does not answer: %s", live.job.id, error)
    except Exception:
        logger.exception("job %s could not be attended to", live.job.id)


def _attend(live: LiveJob, now: datetime, world: World) -> None:
    written_at = result_written_at(world.folders.path(live.job.id, live.attempt.number))
    if not needs_asking(live, now, has_result=written_at is not None):
        return
    driver = _ask(live, world.launcher)
    seen = _verified(live, driver, now, written_at, world)
    for action in decide(live, seen, now, world.policy):
        _execute(action, live, now, world)


def _ask(live: LiveJob, launcher: Launcher) -> DriverStatus | None:
    try:
        return launcher.status(submission_id(live.job.id, live.attempt.number))
    except LauncherUnavailableError as error:
        logger.info("the cluster does not answer about job %s: %s", live.job.id, error)
        return None


def _verified(
    live: LiveJob, driver: DriverStatus | None, now: datetime, written_at: float | None, world: World
) -> Seen:
    """Read the result's checksums only when they decide something: a large model takes seconds to read."""
    age_s = None if written_at is None else now.timestamp() - written_at
    runs = driver is not None and driver.phase in {Phase.PENDING, Phase.RUNNING}
    if runs and (age_s is None or age_s <= world.policy.linger_s):
        return Seen(driver)
    try:
        folder = world.folders.path(live.job.id, live.attempt.number)
        return Seen(driver, verified_result(folder, live.job.id, live.attempt.number).outcome, age_s)
    except ValueError as error:
        return Seen(driver, result_problem=str(error))


def _execute(action: Action, live: LiveJob, now: datetime, world: World) -> None:
    match action:
        case Move():
            _move(live.job, action, now, world.store)
        case Launch():
            _launch(live.job, live.attempt, now, world)
        case Stop():
            world.launcher.stop(submission_id(live.job.id, live.attempt.number))
        case _:
            assert_never(action)


def _move(job: JobRecord, move: Move, now: datetime, store: Store) -> JobRecord:
    change = Transition(job.id, job.attempt, job.state, move.new, move.reason, move.message, move.next_attempt)
    moved = store.transition(change, now)
    logger.info("job %s attempt %d: %s -> %s (%s)", job.id, job.attempt, job.state, moved.state, moved.reason)
    return moved


def _launch(job: JobRecord, attempt: AttemptRecord, now: datetime, world: World) -> None:
    """Hand an attempt to the cluster. A crash at any line is healed by doing it again."""
    if attempt.number > 1:
        world.launcher.stop(submission_id(job.id, attempt.number - 1))  # given up, but it may hold the resources
    folder = world.folders.prepare(job, attempt, world.store)
    try:
        world.launcher.submit(submission_id(job.id, attempt.number), folder)
    except LaunchRejectedError as error:
        _move(job, Move(JobState.FAILED, Reason.SUBMIT_FAILED, str(error)), now, world.store)
    else:
        world.store.mark_submitted(job.id, attempt.number, now)


class Reconciler:
    """Runs reconcile_once in one daemon thread: at once when woken, else every `interval_s`."""

    def __init__(self, world: World, interval_s: float) -> None:
        """Does nothing until `start`."""
        self._world = world
        self._interval_s = interval_s
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._last_look = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Begin to look after the jobs."""
        self._thread.start()

    def wake(self) -> None:
        """Have it look at once."""
        self._woken.set()

    def stop(self, timeout_s: float = 10) -> None:
        """End the thread; what runs on the cluster goes on."""
        self._stopping.set()
        self._woken.set()
        self._thread.join(timeout_s)

    @property
    def last_look_s(self) -> float | None:
        """Seconds since the last look ended; None if the thread does not live."""
        return time.monotonic() - self._last_look if self._thread.is_alive() else None

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                reconcile_once(datetime.now(UTC), self._world)
                self._last_look = time.monotonic()
            except Exception:
                logger.exception("the reconciler stumbled; it tries again")
            self._woken.wait(self._interval_s)
            self._woken.clear()
