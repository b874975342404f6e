"""The reconciler: compares what the store wants with what the cluster has, decides, then executes; again and again.

Only the leader's does (see leadership), and each of its writes bears the leader's fence. It may be killed at every
line: whatever it had begun, the next look, of this process or another, takes up from what the store says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar, assert_never

from opentelemetry.trace import NoOpTracer, Tracer

from service.cluster.attempts import (
    AttemptFolders,
    attempt_failure,
    finished_epochs,
    result_written_at,
    verified_result,
)
from service.cluster.launcher import (
    AnswerUnusableError,
    DriverStatus,
    Launcher,
    LauncherUnavailableError,
    LaunchRejectedError,
    Node,
)
from service.control.decisions import (
    Action,
    Launch,
    Move,
    Policy,
    Seen,
    Stop,
    decide,
    lives,
    needs_asking,
    overdue,
    silence_s,
)
from service.control.early_stop import EarlyStopper
from service.control.failpoints import Failpoint, failpoint
from service.control.machines import Machines
from service.control.queue import Limits, has_room, plan_queue, refuse, stranded
from service.jobs.ids import new_id, submission_id
from service.jobs.records import (
    AttemptRecord,
    Fence,
    JobRecord,
    LeaseLostError,
    LiveJob,
    StaleTransitionError,
    TenantLimits,
    Transition,
    WaitingJob,
)
from service.jobs.states import TERMINAL_STATES, JobState, Reason
from service.store.store import Store
from service.telemetry.log_fields import bound
from trainer.run_schema import FAILURE_FILE, EpochSummary

logger = logging.getLogger(__name__)

WINDOW = 100
"""Waiting jobs of each tenant that are looked at: those behind them cannot start before them."""

NEW_S = 15.0
MAX_NEWCOMERS = 500
"""Jobs younger than this are looked at also where they stand at the queue's end: one that can never fit is told so at
once. One that is missed is told when it comes to the front."""

MAX_OVERDUE = 100

MAX_RECOVERING = 1000
"""Jobs that recover of which each look asks whether the cluster has any place for them."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class World:
    """Everything the reconciler acts upon."""

    store: Store
    launcher: Launcher
    folders: AttemptFolders
    policy: Policy
    limits: TenantLimits
    """Of tenants that have none of their own."""
    early_stop: EarlyStopper
    machines: Machines = field(default_factory=Machines)
    tracer: Tracer = field(default_factory=NoOpTracer)


@dataclass(frozen=True)
class Watch:
    """Who looks, and since when: its write permit, and the time from which on attempts could make themselves heard."""

    fence: Fence | None
    listening_since: datetime


def reconcile_once(now: datetime, watch: Watch, world: World) -> None:
    """Look at the jobs once and do what is due. LeaseLostError as soon as another process leads."""
    with world.tracer.start_as_current_span("reconcile.look"):
        _Look(now, watch, world).take()


class _Cluster:
    """The launcher during one look: a cluster that did not answer is not asked again, as that costs its timeout."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._trouble: LauncherUnavailableError | None = None

    def ask(self, question: Callable[[Launcher], _Answer]) -> _Answer:
        """What the launcher answers; LauncherUnavailableError if it does not, or did not before."""
        if self._trouble is not None:
            raise self._trouble
        try:
            return question(self._launcher)
        except AnswerUnusableError:
            raise  # one attempt's trouble, which cost no timeout, keeps no other from being asked about
        except LauncherUnavailableError as error:
            self._trouble = error
            logger.info("the cluster does not answer: %s", error)
            raise

    def status(self, name: str) -> DriverStatus | None:
        """What the cluster says about a driver; None if it does not answer."""
        try:
            return self.ask(lambda launcher: launcher.status(name))
        except LauncherUnavailableError:
            return None


class _Look:
    """One look at all jobs."""

    def __init__(self, now: datetime, watch: Watch, world: World) -> None:
        self._now, self._watch, self._world = now, watch, world
        self._store, self._cluster = world.store, _Cluster(world.launcher)

    def take(self) -> None:
        """Deadlines, then what runs, then what is hopeless, then what waits."""
        for job in self._store.overdue(self._now, MAX_OVERDUE):
            with _one_job(job.id, job.attempt):
                self._move(job.id, job.attempt, job.state, overdue(job))
        for live in self._store.active():
            with _one_job(live.job.id, live.job.attempt):
                self._attend(live)
        self._world.early_stop.stop_hopeless(self._now, self._watch.fence)
        self._serve_queue()

    # ------------------------------------------------------------------------------------------------ what runs

    def _attend(self, live: LiveJob) -> None:
        folder = self._world.folders.path(live.job.id, live.attempt.number)
        written_at = result_written_at(folder)
        ends = written_at is not None or (folder / FAILURE_FILE).exists()
        if not needs_asking(live, self._now, ends):
            return
        driver = self._cluster.status(submission_id(live.job.id, live.attempt.number))
        seen = self._see(live, driver, written_at)
        if live.attempt.submitted_at is None and seen.silent_s > self._world.policy.start_timeout_s:
            # It is given up if Ray does not take it, but not for want of storage: an error here keeps it waiting.
            self._world.folders.prepare(live.job, live.attempt, self._store, self._watch.fence)
        if seen.outcome is not None:
            failpoint(Failpoint.RESULT_VERIFIED)
        actions = decide(live, seen, self._now, self._world.policy)
        if any(isinstance(action, Stop) for action in actions):
            self._store.confirm(live.job, self._watch.fence)  # no write by itself, but who leads by now may know better
            self._note_why(live, actions)
        for action in actions:
            self._execute(action, live)

    def _note_why(self, live: LiveJob, actions: Sequence[Action]) -> None:
        """Why we end a job, before we stop its driver: killed after that, nobody would know that it was us."""
        match actions:
            case (Stop(), Move(JobState.FAILED, reason, message)):
                self._store.note_reason(live.job.id, live.attempt.number, reason, message, self._watch.fence)

    def _see(self, live: LiveJob, driver: DriverStatus | None, written_at: float | None) -> Seen:
        """Read the result's checksums only when they decide something: a large model takes seconds to read."""
        policy = self._world.policy
        silent_s = silence_s(live, self._now, self._watch.listening_since)
        age_s = None if written_at is None else self._now.timestamp() - written_at
        is_awaited = live.job.state is JobState.CANCELLING  # whoever has asked for that waits
        lingers = lives(driver) and age_s is not None and (is_awaited or age_s > policy.linger_s)
        if (driver is None or lives(driver)) and not lingers and silent_s <= policy.lost_after_s:
            return Seen(driver, silent_s)
        folder = self._world.folders.path(live.job.id, live.attempt.number)
        try:
            return Seen(driver, silent_s, verified_result(folder, live.job.id, live.attempt.number).outcome, age_s)
        except ValueError as error:
            failure = None if lives(driver) else attempt_failure(folder)
            return Seen(driver, silent_s, result_problem=str(error), failure=failure)

    def _execute(self, action: Action, live: LiveJob) -> None:
        job = live.job
        match action:
            case Move():
                self._move(job.id, job.attempt, job.state, action)
            case Launch():
                self._launch(job, live.attempt)
            case Stop():
                self._stop(job.id, action.attempt)
            case _:
                assert_never(action)

    # ----------------------------------------------------------------------------------------------- what waits

    def _serve_queue(self) -> None:
        if not self._store.has_waiting():
            return
        nodes = self._nodes()
        limits = Limits(self._world.limits, self._store.tenant_limits())
        self._give_up(nodes, limits)
        if nodes is None:
            self._world.machines.out_of_sight(self._now)
        else:
            self._fill(nodes, limits)

    def _nodes(self) -> Sequence[Node] | None:
        try:
            return self._cluster.ask(lambda launcher: launcher.nodes())
        except LauncherUnavailableError:
            return None

    def _give_up(self, nodes: Sequence[Node] | None, limits: Limits) -> None:
        """Fail jobs that recover on a cluster which has had no place for them for too long."""
        recovering = {job.id: job for job in self._store.recovering(MAX_RECOVERING)}
        moves = stranded(list(recovering.values()), nodes, limits)
        patience_s = self._world.policy.recovery_timeout_s
        late = self._world.machines.stranded_for(moves.keys(), self._watch.listening_since, self._now, patience_s)
        for job in (recovering[job_id] for job_id in late):
            with _one_job(job.id, job.attempt):
                if nodes is not None:  # the driver before may live yet, and nobody would stop it after the job's end
                    self._stop(job.id, job.attempt - 1)
                self._move(job.id, job.attempt, job.state, moves[job.id])

    def _fill(self, nodes: Sequence[Node], limits: Limits) -> None:
        """Start whose turn it is, and fail what will never fit."""
        active, patience_s = self._store.active(), self._world.policy.start_timeout_s
        judged_from = self._world.machines.judged_from(nodes, self._watch.listening_since, self._now, patience_s)
        # While the cluster is full, which is when many wait, reading the queue is of no use.
        waiting = self._store.waiting(WINDOW, self._now) if has_room(active, nodes) else []
        self._fail(refuse(self._with_newcomers(waiting), nodes, limits, judged_from))
        for job, move in plan_queue(waiting, active, nodes, limits, self._now):
            with _one_job(job.id, job.attempt):
                self._start(job, move)

    def _fail(self, moves: Sequence[tuple[WaitingJob, Move]]) -> None:
        for job, move in moves:
            with _one_job(job.id, job.attempt):
                self._move(job.id, job.attempt, job.state, move)

    def _with_newcomers(self, waiting: Sequence[WaitingJob]) -> list[WaitingJob]:
        since_id = new_id(self._now - timedelta(seconds=NEW_S), 0)
        newcomers = self._store.newcomers(since_id, MAX_NEWCOMERS)
        return list({job.id: job for job in (*waiting, *newcomers)}.values())

    def _start(self, waiting: WaitingJob, move: Move) -> None:
        job = self._move(waiting.id, waiting.attempt, waiting.state, move)
        attempt = self._store.attempt(job.id, job.attempt)
        assert attempt is not None, "a job has its current attempt"
        self._launch(job, attempt)

    def _launch(self, job: JobRecord, attempt: AttemptRecord) -> None:
        """Hand an attempt to the cluster. A crash at any line is healed by doing it again."""
        about: dict[str, str | int] = {"hush.job_id": job.id, "hush.attempt": attempt.number}
        with self._world.tracer.start_as_current_span("reconcile.launch", attributes=about):
            self._hand_over(job, attempt)

    def _hand_over(self, job: JobRecord, attempt: AttemptRecord) -> None:
        if attempt.number > 1 and not self._has_ended(job, attempt.number - 1):
            return
        folder = self._world.folders.prepare(job, attempt, self._store, self._watch.fence)
        name = submission_id(job.id, attempt.number)
        self._store.confirm(job, self._watch.fence)
        failpoint(Failpoint.LAUNCH_BEFORE_SUBMIT)
        try:
            self._cluster.ask(lambda launcher: launcher.submit(name, folder))
        except LaunchRejectedError as error:
            rejected = Move(JobState.FAILED, Reason.SUBMIT_FAILED, str(error))
            self._move(job.id, job.attempt, job.state, rejected)
        else:
            failpoint(Failpoint.LAUNCH_AFTER_SUBMIT)
            self._store.mark_submitted(job.id, attempt.number, self._now, self._watch.fence)

    def _has_ended(self, job: JobRecord, number: int) -> bool:
        """Whether the driver of the attempt before has ended; it is stopped, so that no two run at a time.

        One that does not end is waited for no longer than a silent attempt is: fenced off, it can publish nothing.
        """
        name = submission_id(job.id, number)
        if not lives(self._cluster.ask(lambda launcher: launcher.status(name))):
            return True
        self._stop(job.id, number)
        return (self._now - job.state_since).total_seconds() > self._world.policy.lost_after_s

    def _stop(self, job_id: str, number: int) -> None:
        name = submission_id(job_id, number)
        self._cluster.ask(lambda launcher: launcher.stop(name))

    def _move(self, job_id: str, attempt: int, state: JobState, move: Move) -> JobRecord:
        # What the last heartbeats would have told is made up for at a job's end; until then the next attempt tells it.
        ends = move.new in TERMINAL_STATES and state is not JobState.QUEUED
        change = Transition(
            job_id,
            attempt,
            state,
            move.new,
            move.reason,
            move.message,
            not_before=move.not_before,
            epochs=self._finished_epochs(job_id, attempt) if ends else (),
        )
        moved = self._store.transition(change, self._now, self._watch.fence)
        logger.info("job %s attempt %d: %s -> %s (%s)", job_id, attempt, state, moved.state, moved.reason)
        return moved

    def _finished_epochs(self, job_id: str, attempt: int) -> tuple[EpochSummary, ...]:
        """Of the newest attempt that tells of any: the current one may not have begun."""
        folders = (self._world.folders.path(job_id, number) for number in range(attempt, 0, -1))
        return next((told for folder in folders if (told := finished_epochs(folder))), ())


@contextmanager
def _one_job(job_id: str, attempt: int) -> Iterator[None]:
    """One job's trouble never keeps the others from their turn; what failed is tried again at the next look."""
    with bound({"job_id": job_id, "attempt": attempt}):
        try:
            yield
        except LeaseLostError:
            raise
        except StaleTransitionError as error:
            logger.debug("overtaken: %s", error)
        except LauncherUnavailableError as error:
            logger.debug("job %s waits, because the cluster does not answer: %s", job_id, error)
        except Exception:
            logger.exception("job %s could not be attended to", job_id)
