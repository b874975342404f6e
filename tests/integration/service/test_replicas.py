"""Several processes on one database: one leads, another takes over, and one that has slept through that does no harm.

Each is a Reconciler of its own on connections of its own. The cluster they share is a stand-in that writes down what it
is asked; the clock is given, except where threads race. Over 400 lines, as all of it is about what one leader after
another does to the same few jobs on that cluster.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from marked_processes import wait_until
from sqlalchemy import Engine

from service.cluster.attempts import AttemptFolders
from service.cluster.launcher import AnswerUnusableError, DriverStatus, LauncherUnavailableError, Node, Phase
from service.control.decisions import Policy
from service.control.early_stop import EarlyStopper
from service.control.leadership import Leadership
from service.control.reconciler import World
from service.control.reconciler_thread import Reconciler
from service.jobs.records import JobRecord, Submission, TenantLimits
from service.jobs.states import JobState, Reason
from service.store.database import open_engine
from service.store.leases import Leases
from service.store.store import Store
from service.store.studies import Studies
from trainer.run_schema import (
    ATTEMPT_FILE,
    EPOCH_END_METRIC,
    JOURNAL_FILE,
    RESULT_FILE,
    AttemptContext,
    AttemptResult,
    Heartbeat,
    JournalEntry,
    Progress,
)
from trainer.spec import FaultToleranceSpec, JobSpec, ResourcesSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TTL_S = 15.0
POLICY = Policy(
    cancel_grace_s=3,
    cancel_checkpoint_s=100,
    lost_after_s=60,
    start_timeout_s=900,
    recovery_timeout_s=3600,
    linger_s=30,
    retry_backoff_s=0,
    retry_backoff_max_s=0,
)
SPEC = JobSpec.model_validate({"name": "job", "data": {"manifest": "/m"}})


class RecordingCluster:
    """A cluster that runs whatever it is given for ever, and counts how often it was given it."""

    def __init__(self) -> None:
        self.submitted: Counter[str] = Counter()
        self.answers = True
        self.num_asked = 0
        self.before_submit: Callable[[], None] = lambda: None
        self.machines = [Node(1000, 0)]
        self.stopped: list[str] = []
        self.before_nodes: Callable[[], None] = lambda: None
        self.before_status: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def nodes(self) -> Sequence[Node]:
        self._ask()
        self.before_nodes()
        return self.machines

    def submit(self, submission_id: str, run_dir: Path) -> None:
        self._ask()
        self.before_submit()
        with self._lock:
            self.submitted[submission_id] += 1

    def status(self, submission_id: str) -> DriverStatus:
        self._ask()
        self.before_status()
        return DriverStatus(Phase.RUNNING if submission_id in self.submitted else Phase.LOST)

    def stop(self, submission_id: str) -> None:
        self._ask()
        self.stopped.append(submission_id)

    def close(self) -> None:
        """Nothing is open."""

    def _ask(self) -> None:
        self.num_asked += 1
        if not self.answers:
            raise LauncherUnavailableError("taken away")


class Replicas:
    """Processes on one database, as far as looking after jobs is concerned."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self.cluster = RecordingCluster()
        self._url, self._folder = database_url, folder
        self._engines: list[Engine] = []
        self.store = Store(self._engine())

    def add(self, name: str, interval_s: float = 0.01, ttl_s: float = TTL_S) -> Reconciler:
        engine = self._engine()
        folders = AttemptFolders(self._folder, "http://hush", None)
        early_stop = EarlyStopper(Studies(engine))
        world = World(Store(engine), self.cluster, folders, POLICY, TenantLimits(), early_stop)
        return Reconciler(world, Leadership(Leases(engine), name, ttl_s), interval_s)

    def submit(self, now: datetime = NOW, spec: JobSpec = SPEC) -> JobRecord:
        return self.store.submit(Submission("default", spec), now)[0]

    def state(self, job: JobRecord) -> JobState:
        found = self.store.get(job.id)
        assert found is not None
        return found.state

    def close(self) -> None:
        for engine in self._engines:
            engine.dispose()

    def _engine(self) -> Engine:
        self._engines.append(open_engine(self._url))
        return self._engines[-1]


@pytest.fixture
def replicas(database_url: str, tmp_path: Path) -> Iterator[Replicas]:
    made = Replicas(database_url, tmp_path / "storage")
    yield made
    made.close()


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_one_leads_and_another_takes_over_when_its_lease_has_ended(replicas: Replicas) -> None:
    first, second = replicas.add("first"), replicas.add("second")
    for replica in (first, second):
        replica.look(NOW)
    assert (first.is_leader, second.is_leader) == (True, False)
    job = replicas.submit()
    second.look(later(14))
    assert replicas.state(job) is JobState.QUEUED
    second.look(later(16))
    assert second.is_leader
    assert replicas.state(job) is JobState.STARTING
    first.look(later(17))
    assert not first.is_leader
    assert list(replicas.cluster.submitted.values()) == [1]


def test_a_leader_that_looks_keeps_its_lease(replicas: Replicas) -> None:
    first, second = replicas.add("first"), replicas.add("second")
    for seconds in range(0, 100, 4):
        first.look(later(seconds))
        second.look(later(seconds))
    assert (first.is_leader, second.is_leader) == (True, False)


def test_a_leader_that_was_overtaken_in_the_middle_of_a_look_changes_nothing_more(replicas: Replicas) -> None:
    slow, fast = replicas.add("slow"), replicas.add("fast")
    jobs = [replicas.submit(), replicas.submit(later(0.001))]

    def sleep_through_the_lease() -> None:
        replicas.cluster.before_submit = lambda: None
        fast.look(later(20))

    replicas.cluster.before_submit = sleep_through_the_lease
    slow.look(later(1))
    assert (slow.is_leader, fast.is_leader) == (False, True)
    # What the slow one had begun the fast one did again, by the same id, which is one driver; the rest it left alone.
    assert [replicas.cluster.submitted[f"job-{job.id}-a1"] for job in jobs] == [2, 1]
    for job in jobs:
        followed = replicas.store.follow(job.id, 0, 100)
        assert followed is not None
        assert [event.state for event in followed[1]] == [JobState.QUEUED, JobState.STARTING]
        [attempt] = replicas.store.attempts(job.id)
        assert attempt.submitted_at == later(20)


def test_a_cluster_that_is_away_is_asked_once_a_look(replicas: Replicas) -> None:
    leader = replicas.add("leader")
    jobs = [replicas.submit() for _ in range(5)]
    leader.look(NOW)
    replicas.cluster.answers, replicas.cluster.num_asked = False, 0
    waiting = replicas.submit()
    leader.look(later(1))
    assert replicas.cluster.num_asked == 1
    assert {replicas.state(job) for job in jobs} == {JobState.STARTING}
    assert replicas.state(waiting) is JobState.QUEUED


def test_the_lease_is_kept_through_a_look_that_outlasts_it(replicas: Replicas) -> None:
    slow, other = (replicas.add(name, ttl_s=3) for name in ("slow", "other"))
    looks, go_on = threading.Event(), threading.Event()

    def dawdle() -> None:
        looks.set()
        go_on.wait(60)

    replicas.cluster.before_nodes = dawdle
    job = replicas.submit(datetime.now(UTC))
    slow.start()
    try:
        assert looks.wait(30)
        time.sleep(4)
        other.look(datetime.now(UTC))
        assert (slow.is_leader, other.is_leader) == (True, False)
    finally:
        go_on.set()
        slow.stop()
    assert replicas.state(job) is JobState.STARTING


def test_one_attempt_that_cannot_be_asked_about_keeps_nobody_waiting(replicas: Replicas) -> None:
    leader = replicas.add("leader")
    replicas.submit(later(-1))
    leader.look(NOW)
    waiting = replicas.submit()

    def answer_nonsense() -> None:
        raise AnswerUnusableError("Ray answered 500")

    replicas.cluster.before_status = answer_nonsense
    leader.look(later(1))
    assert replicas.state(waiting) is JobState.STARTING


def test_silence_while_nobody_looked_is_not_held_against_an_attempt(replicas: Replicas) -> None:
    leader = replicas.add("leader")
    job = replicas.submit()
    leader.look(NOW)
    replicas.cluster.answers = False
    leader.look(later(1000))  # the service was away for long, and Ray is yet
    assert replicas.state(job) is JobState.STARTING
    for seconds in range(1000, 1060, 10):
        leader.look(later(seconds))
    assert replicas.state(job) is JobState.STARTING
    leader.look(later(1061))
    assert replicas.state(job) is JobState.RECOVERING


def test_jobs_that_wait_outlast_a_machine_that_is_away_for_a_while(replicas: Replicas) -> None:
    leader = replicas.add("leader")
    head, machine = Node(2, 0), Node(2, 0)
    replicas.cluster.machines = [head, machine]
    wide = SPEC.model_copy(update={"resources": ResourcesSpec(num_workers=4)})
    first, waiting = replicas.submit(later(-2)), replicas.submit(later(-1), wide)
    leader.look(NOW)
    assert (replicas.state(first), replicas.state(waiting)) == (JobState.STARTING, JobState.QUEUED)
    replicas.cluster.machines = [head]
    leader.look(later(1))
    late = replicas.submit(later(2), wide)
    leader.look(later(3))
    assert replicas.state(waiting) is JobState.QUEUED
    assert replicas.state(late) is JobState.FAILED, "who comes now is told at once"
    for seconds in range(20, 901, 20):
        leader.look(later(seconds))
    assert replicas.state(waiting) is JobState.QUEUED
    leader.look(later(901))
    assert replicas.state(waiting) is JobState.FAILED, "it has not come back"


def test_a_job_that_recovers_outlasts_a_cluster_that_is_away_but_not_for_ever(
    replicas: Replicas, tmp_path: Path
) -> None:
    leader = replicas.add("leader")
    replicas.cluster.machines = [Node(4, 0)]
    wide, narrow = (SPEC.model_copy(update={"resources": ResourcesSpec(num_workers=n)}) for n in (4, 1))
    jobs = [replicas.submit(later(-1), wide)]
    leader.look(NOW)
    entry = JournalEntry(time_ms=0, step=8, epoch=1, metrics={EPOCH_END_METRIC: 1.0, "train/loss": 0.5})
    journal = tmp_path / "storage" / "jobs" / jobs[0].id / "attempt-1" / JOURNAL_FILE
    journal.write_text(f"{entry.model_dump_json()}\n")  # of which no heartbeat told
    replicas.cluster.machines, replicas.cluster.answers = [Node(2, 0)], False
    for seconds in range(10, 101, 10):
        leader.look(later(seconds))
    jobs.append(replicas.submit(later(101), narrow))
    assert [replicas.state(job) for job in jobs] == [JobState.RECOVERING, JobState.QUEUED]
    replicas.cluster.answers = True
    leader.look(later(110))
    assert [replicas.state(job) for job in jobs] == [JobState.RECOVERING, JobState.STARTING]
    replicas.cluster.answers = False
    for seconds in range(120, 3780, 20):
        leader.look(later(seconds))
    failed, waits = (replicas.store.get(job.id) for job in jobs)
    assert failed is not None
    assert waits is not None
    assert (failed.state, failed.reason) == (JobState.FAILED, Reason.HEAD_LOST)
    assert waits.state is JobState.RECOVERING, "not for an hour yet"
    assert "Ray does not answer" in (failed.message or "")
    told = replicas.store.follow(failed.id, 0, 100)
    assert told is not None
    assert [event.epoch.metrics["train/loss"] for event in told[1] if event.epoch is not None] == [0.5]


def test_what_a_job_left_behind_is_stopped_when_it_is_given_up(replicas: Replicas) -> None:
    leader = replicas.add("leader")
    job = replicas.submit(later(-1), SPEC.model_copy(update={"resources": ResourcesSpec(num_workers=4)}))
    leader.look(NOW)
    replicas.cluster.answers = False
    for seconds in range(10, 80, 10):
        leader.look(later(seconds))
    assert replicas.state(job) is JobState.RECOVERING
    replicas.cluster.machines, replicas.cluster.answers = [Node(2, 0)], True
    for seconds in range(80, 3700, 20):
        leader.look(later(seconds))
    found = replicas.store.get(job.id)
    assert found is not None
    assert (found.state, found.reason) == (JobState.FAILED, Reason.NEVER_FITS)
    assert replicas.cluster.stopped == [f"job-{job.id}-a1"]


def beat(replicas: Replicas, folder: Path, job: JobRecord) -> None:
    """The first and last heartbeat of an attempt."""
    token = AttemptContext.model_validate_json((folder / ATTEMPT_FILE).read_bytes()).heartbeat_token
    told = Heartbeat(progress=Progress(phase="finishing", epoch=1, num_epochs=1, step=1, num_steps=1))
    replicas.store.heartbeat(job.id, 1, token or "", told, NOW)


def test_a_leader_that_was_overtaken_stops_no_driver(replicas: Replicas, tmp_path: Path) -> None:
    slow, fast = replicas.add("slow"), replicas.add("fast")
    job = replicas.submit(spec=SPEC.model_copy(update={"fault_tolerance": FaultToleranceSpec(max_failures=0)}))
    slow.look(NOW)
    beat(replicas, tmp_path / "storage" / "jobs" / job.id / "attempt-1", job)
    for seconds in range(10, 61, 10):
        slow.look(later(seconds))

    def sleep_through_the_lease() -> None:
        replicas.cluster.before_status = lambda: None
        fast.look(later(90))  # which has just begun to listen

    replicas.cluster.before_status = sleep_through_the_lease
    slow.look(later(61))
    assert (slow.is_leader, fast.is_leader) == (False, True)
    assert replicas.cluster.stopped == []
    assert replicas.state(job) is JobState.RUNNING


def write_result(folder: Path, job: JobRecord, written_at: datetime) -> None:
    """What an attempt leaves that has ended well."""
    result = AttemptResult(
        job_id=job.id, attempt=1, outcome="succeeded", num_epochs=1, num_steps=1, metrics={}, files={}
    )
    (folder / RESULT_FILE).write_text(result.model_dump_json())
    os.utime(folder / RESULT_FILE, (written_at.timestamp(), written_at.timestamp()))


@pytest.mark.parametrize("ray_answers", [True, False])
def test_a_silent_attempt_is_not_lost_if_its_result_is_complete(
    replicas: Replicas, tmp_path: Path, ray_answers: bool
) -> None:
    leader = replicas.add("leader")
    job = replicas.submit()
    leader.look(NOW)
    folder = tmp_path / "storage" / "jobs" / job.id / "attempt-1"
    beat(replicas, folder, job)
    write_result(folder, job, later(50))
    replicas.cluster.answers = ray_answers
    for seconds in range(10, 61, 10):
        leader.look(later(seconds))
    assert replicas.state(job) is JobState.RUNNING
    leader.look(later(61))
    assert replicas.state(job) is JobState.SUCCEEDED


@contextmanager
def running(reconcilers: list[Reconciler]) -> Iterator[None]:
    for reconciler in reconcilers:
        reconciler.start()
    try:
        yield
    finally:
        for reconciler in reconcilers:
            reconciler.stop()


def test_many_that_race_launch_each_job_once(replicas: Replicas) -> None:
    reconcilers = [replicas.add(name) for name in ("a", "b", "c")]
    with running(reconcilers):
        jobs = [replicas.submit(datetime.now(UTC)) for _ in range(30)]
        wait_until(lambda: all(replicas.state(job) is JobState.STARTING for job in jobs), "all jobs have started")
        assert sum(reconciler.is_leader for reconciler in reconcilers) == 1
        leader = next(reconciler for reconciler in reconcilers if reconciler.is_leader)
        leader.stop()  # in an orderly way: it gives its lease back
        more = [replicas.submit(datetime.now(UTC)) for _ in range(3)]
        wait_until(lambda: all(replicas.state(job) is JobState.STARTING for job in more), "the next one leads")
        assert not leader.is_leader
    names = {f"job-{job.id}-a1" for job in jobs + more}
    assert replicas.cluster.submitted == Counter(dict.fromkeys(names, 1))
