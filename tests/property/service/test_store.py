"""The store against a model, on both databases: whatever is asked in whatever order, by whomever, the rules hold.

Over 400 lines, as the model, what may be asked of it and what must hold are one state machine, which reads best whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from postgres_server import empty
from sqlalchemy import Engine

from service.jobs.records import (
    CancelMode,
    Fence,
    IdempotencyConflictError,
    LeaseLostError,
    StaleTransitionError,
    Submission,
    Transition,
)
from service.jobs.states import (
    ACTIVE_STATES,
    TERMINAL_STATES,
    TRANSITIONS,
    WAITING_STATES,
    JobState,
    Reason,
    may_become,
)
from service.store.database import open_engine
from service.store.leases import Leases
from service.store.store import FencedOffError, Store, UnknownAttemptError, WrongTokenError
from service.store.writes import IllegalTransitionError, hash_token
from trainer.run_schema import EpochSummary, Heartbeat, Progress
from trainer.spec import JobSpec

MAX_JOBS = 4
LEASE, TTL_S = "reconciler", 10

TENANTS = st.sampled_from(["default", "other"])
SPECS = [
    JobSpec.model_validate({"name": name, "data": {"manifest": "/m"}, "scheduling": {"priority": priority}})
    for name, priority in (("a", 0), ("b", 1))
]
STATES = st.sampled_from(sorted(JobState))
KEYS = st.none() | st.sampled_from(["x", "y"])
INDICES = st.integers(0, MAX_JOBS - 1)
OFFSETS = st.sampled_from([0, 0, 0, -1, 1])
EPOCHS = st.lists(st.integers(1, 4), max_size=3)
MODES = st.sampled_from(["graceful", "now"])
HOLDERS = st.sampled_from(["p", "q"])
WRITERS = st.sampled_from([None, "p", "q"])
"""Whose fence a write bears; None bears none."""


@dataclass
class Model:
    """What must be true of one job."""

    id: str
    submission: Submission
    state: JobState = JobState.QUEUED
    attempt: int = 1
    num_failures: int = 0
    not_before: datetime | None = None
    cancel_mode: CancelMode | None = None
    history: list[JobState] = field(default_factory=lambda: [JobState.QUEUED])
    epochs: list[int] = field(default_factory=list)

    def move(self, new: JobState, not_before: datetime | None = None) -> None:
        self.state, self.not_before = new, not_before
        self.history.append(new)

    def tell(self, epochs: list[int]) -> None:
        self.epochs += [epoch for epoch in dict.fromkeys(epochs) if epoch not in self.epochs]


@dataclass
class LeaseModel:
    """Who holds the lease, and until when."""

    holder: str
    token: int
    until: datetime


class StoreMachine(RuleBasedStateMachine):
    """Several jobs of two tenants, two processes that both want to lead; beside them what must be true."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        empty(engine)
        self.store, self.leases = Store(engine), Leases(engine)
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.jobs: list[Model] = []
        self.keys: dict[tuple[str, str], Model] = {}
        self.lease: LeaseModel | None = None
        self.fences: dict[str, Fence] = {}

    def _tick(self, seconds: float = 0.001) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now

    def _job(self, index: int) -> Model:
        return self.jobs[index % len(self.jobs)]

    # ------------------------------------------------------------------------------------------------- submitting

    @precondition(lambda self: len(self.jobs) < MAX_JOBS)
    @rule(tenant=TENANTS, key=KEYS, spec=st.sampled_from(SPECS))
    def submit(self, tenant: str, key: str | None, spec: JobSpec) -> None:
        self._submit(Submission(tenant, spec), key)

    @precondition(lambda self: 0 < len(self.jobs) < MAX_JOBS)
    @rule(index=INDICES, key=KEYS)
    def retry(self, index: int, key: str | None) -> None:
        old = self._job(index)
        new = self._submit(Submission(old.submission.tenant, old.submission.spec, retry_of=old.id), key)
        if new is not None:
            job = self.store.get(new.id)
            assert job is not None
            assert self.store.lineage(job)[:2] == [new.id, old.id]

    def _submit(self, submission: Submission, key: str | None) -> Model | None:
        now = self._tick()
        known = None if key is None else self.keys.get((submission.tenant, key))
        if known is not None and known.submission != submission:
            with pytest.raises(IdempotencyConflictError, match=known.id):
                self.store.submit(submission, now, key)
            return None
        job, is_new = self.store.submit(submission, now, key)
        assert is_new == (known is None)
        if known is not None:
            assert job.id == known.id
            return known
        made = Model(job.id, submission)
        self.store.set_token(job.id, 1, hash_token(f"{job.id}-1"))
        self.jobs.append(made)
        if key is not None:
            self.keys[submission.tenant, key] = made
        return made

    # ------------------------------------------------------------------------------------------------- changing

    @precondition(lambda self: self.jobs)
    @rule(index=INDICES, state=STATES, new=STATES, off=OFFSETS, writer=WRITERS)
    def transition(self, index: int, state: JobState, new: JobState, off: int, writer: str | None) -> None:
        job = self._job(index)
        self._ask(job, Transition(job.id, job.attempt + off, state, new, Reason.DRIVER_LOST), writer)

    @precondition(lambda self: any(job.state not in TERMINAL_STATES for job in self.jobs))
    @rule(index=INDICES, data=st.data(), epochs=EPOCHS, wait_s=st.none() | st.just(5))
    def legal_transition(self, index: int, data: st.DataObject, epochs: list[int], wait_s: int | None) -> None:
        job = self._job(index)
        if job.state in TERMINAL_STATES:
            return
        change = Transition(
            job.id,
            job.attempt,
            job.state,
            data.draw(st.sampled_from(sorted(TRANSITIONS[job.state]))),
            Reason.DRIVER_LOST,
            not_before=None if wait_s is None else self.now + timedelta(seconds=wait_s),
            epochs=summaries(epochs),
        )
        self._ask(job, change, data.draw(WRITERS))

    def _ask(self, job: Model, change: Transition, writer: str | None) -> None:
        now, fence = self._tick(), self._fence(writer)
        if fence is not None and not self._holds(fence):
            with pytest.raises(LeaseLostError):
                self.store.transition(change, now, fence)
        elif not may_become(change.state, change.new):
            with pytest.raises(IllegalTransitionError):
                self.store.transition(change, now, fence)
        elif (change.state, change.attempt) != (job.state, job.attempt):
            with pytest.raises(StaleTransitionError):
                self.store.transition(change, now, fence)
        else:
            self.store.transition(change, now, fence)
            job.tell([summary.epoch for summary in change.epochs])
            job.move(change.new, change.not_before)
            if change.new is JobState.RECOVERING:
                job.attempt, job.num_failures = job.attempt + 1, job.num_failures + 1
                self.store.set_token(job.id, job.attempt, hash_token(f"{job.id}-{job.attempt}"))

    @precondition(lambda self: self.jobs)
    @rule(index=INDICES, mode=MODES, reason=st.sampled_from([Reason.USER_CANCELLED, Reason.EARLY_STOPPED]))
    def cancel(self, index: int, mode: CancelMode, reason: Reason) -> None:
        job, now = self._job(index), self._tick()
        answered = self.store.request_cancel(job.id, now, mode, reason)
        if job.state is JobState.CANCELLING:
            job.cancel_mode = "now" if mode == "now" else job.cancel_mode
        elif job.state not in TERMINAL_STATES:
            job.move(JobState.CANCELLED if job.state is JobState.QUEUED else JobState.CANCELLING)
            job.cancel_mode = mode
        assert answered is not None
        assert (answered.state, answered.cancel_mode) == (job.state, job.cancel_mode)

    @precondition(lambda self: self.jobs)
    @rule(
        index=INDICES,
        off=OFFSETS,
        good_token=st.sampled_from([True, True, True, False]),
        epochs=EPOCHS,
        loss=st.none() | st.floats(),
    )
    def heartbeat(self, *, index: int, off: int, good_token: bool, epochs: list[int], loss: float | None) -> None:
        job, now = self._job(index), self._tick()
        number = job.attempt + off
        token = f"{job.id}-{number}" if good_token else "token"
        progress = Progress(phase="training", epoch=1, num_epochs=4, step=1, num_steps=4, loss=loss)
        beat = Heartbeat(progress=progress, finished_epochs=summaries(epochs))
        refusal = self._refusal(job, number, good_token)
        if refusal is not None:
            with pytest.raises(refusal):
                self.store.heartbeat(job.id, number, token, beat, now)
            return
        reply = self.store.heartbeat(job.id, number, token, beat, now)
        if job.state in {JobState.STARTING, JobState.RECOVERING}:
            job.move(JobState.RUNNING)
        ordered = "abort" if job.cancel_mode == "now" else "stop"
        assert reply.action == (ordered if job.state is JobState.CANCELLING else "continue")
        job.tell(epochs)
        attempt = self.store.attempt(job.id, number)
        assert attempt is not None
        assert attempt.heartbeat_at == now
        assert attempt.submitted_at is not None

    def _refusal(self, job: Model, number: int, good_token: bool) -> type[Exception] | None:
        if not 1 <= number <= job.attempt:
            return UnknownAttemptError
        if not good_token:
            return WrongTokenError
        return FencedOffError if number != job.attempt or job.state in TERMINAL_STATES else None

    # ------------------------------------------------------------------------------------------------- leading

    @rule(holder=HOLDERS, passed_s=st.sampled_from([0.001, 6.0, 12.0]))
    def acquire(self, holder: str, passed_s: float) -> None:
        now = self._tick(passed_s)
        fence = self.leases.acquire(LEASE, holder, now, TTL_S)
        lease = self.lease
        if lease is not None and lease.holder != holder and lease.until > now:
            assert fence is None
            return
        token = 1 if lease is None else lease.token + (lease.holder != holder)
        assert fence == Fence(LEASE, token)
        self.lease = LeaseModel(holder, token, now + timedelta(seconds=TTL_S))
        self.fences[holder] = fence

    @precondition(lambda self: self.fences)
    @rule(holder=HOLDERS)
    def release(self, holder: str) -> None:
        now, fence = self._tick(), self.fences.get(holder)
        if fence is not None:
            self.leases.release(fence, now)
            if self._holds(fence):
                assert self.lease is not None
                self.lease.until = now

    @precondition(lambda self: self.jobs)
    @rule(index=INDICES, writer=HOLDERS)
    def write_under_a_fence(self, index: int, writer: str) -> None:
        job, now, fence = self._job(index), self._tick(), self._fence(writer)
        seen = self.store.get(job.id)
        assert seen is not None
        assert fence is not None
        token_hash = hash_token(f"{job.id}-{job.attempt}")
        writes: list[Callable[[], None]] = [
            lambda: self.store.confirm(seen, fence),
            lambda: self.store.set_token(job.id, job.attempt, token_hash, fence),
            lambda: self.store.mark_submitted(job.id, job.attempt, now, fence),
        ]
        before = self.store.attempts(job.id)
        for write in writes:
            if self._holds(fence):
                write()
            else:
                with pytest.raises(LeaseLostError):
                    write()
                assert self.store.attempts(job.id) == before

    def _fence(self, writer: str | None) -> Fence | None:
        """Whatever fence the writer has, which may be an old one; one that never held the lease makes one up."""
        return None if writer is None else self.fences.get(writer, Fence(LEASE, 0))

    def _holds(self, fence: Fence) -> bool:
        return self.lease is not None and self.lease.token == fence.token

    # ------------------------------------------------------------------------------------------------- invariants

    @invariant()
    def each_job_is_as_its_model_says(self) -> None:
        for model in self.jobs:
            job = self.store.get(model.id)
            assert job is not None
            assert Submission(job.tenant, job.spec, retry_of=job.retry_of) == model.submission
            assert (job.state, job.attempt, job.num_failures) == (model.state, model.attempt, model.num_failures)
            assert (job.cancel_mode, job.not_before) == (model.cancel_mode, model.not_before)
            assert (job.ended_at is not None) == (model.state in TERMINAL_STATES)
            assert (job.started_at is not None) == (JobState.RUNNING in model.history)
            assert job.progress is None or job.progress.loss is None or math.isfinite(job.progress.loss)

    @invariant()
    def one_event_a_transition_and_each_epoch_once(self) -> None:
        for model in self.jobs:
            followed = self.store.follow(model.id, 0, 10_000)
            assert followed is not None
            events = followed[1]
            assert [event.state for event in events if event.kind == "state"] == model.history
            assert [event.epoch.epoch for event in events if event.epoch is not None] == model.epochs
            assert [event.id for event in events] == sorted({event.id for event in events})

    @invariant()
    def no_transition_leaves_a_terminal_state(self) -> None:
        for model in self.jobs:
            assert all(may_become(old, new) for old, new in itertools.pairwise(model.history))
            assert not TERMINAL_STATES & set(model.history[:-1])

    @invariant()
    def attempts_end_when_the_next_begins_or_the_job_ends(self) -> None:
        for model in self.jobs:
            attempts = self.store.attempts(model.id)
            assert [attempt.number for attempt in attempts] == list(range(1, model.attempt + 1))
            ended = [attempt.ended_at is not None and attempt.reason is not None for attempt in attempts]
            assert ended == [True] * (model.attempt - 1) + [model.state in TERMINAL_STATES]

    @invariant()
    def the_queue_knows_who_waits_and_who_runs(self) -> None:
        active = [(live.job.id, live.attempt.number) for live in self.store.active()]
        assert active == [(model.id, model.attempt) for model in self.jobs if model.state in ACTIVE_STATES]
        waiting = [model for model in self.jobs if model.state in WAITING_STATES]
        waiting.sort(key=lambda model: (-model.submission.spec.scheduling.priority, model.id))
        ready = [model for model in waiting if model.not_before is None or model.not_before <= self.now]
        found = self.store.waiting(MAX_JOBS, self.now)
        assert [(job.id, job.attempt) for job in found] == [(model.id, model.attempt) for model in ready]
        found = self.store.waiting(1, self.now)
        assert [job.id for job in found] == [model.id for model in first_of_each_tenant(ready)]
        assert self.store.has_waiting() == bool(waiting)
        queued = {model.id for model in waiting if model.state is JobState.QUEUED}
        assert {job.id for job in self.store.newcomers("0" * 26, MAX_JOBS)} == queued


def first_of_each_tenant(models: list[Model]) -> list[Model]:
    tenants: set[str] = set()
    return [m for m in models if m.submission.tenant not in tenants and not tenants.add(m.submission.tenant)]


def summaries(epochs: list[int]) -> tuple[EpochSummary, ...]:
    return tuple(EpochSummary(epoch=epoch, metrics={"train/loss": 1.0}) for epoch in epochs)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def test_the_store_keeps_the_rules(engine: Engine) -> None:
    few = settings(max_examples=25, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(lambda: StoreMachine(engine), settings=few)


NUM_THREADS = 8


@pytest.mark.parametrize("round_number", range(5))
def test_one_key_makes_one_job_however_many_ask_at_a_time(engine: Engine, round_number: int) -> None:
    store, barrier = Store(engine), Barrier(NUM_THREADS)
    now = datetime(2026, 1, 1, tzinfo=UTC)

    def submit(number: int) -> tuple[str, bool] | None:
        submission = Submission("default", SPECS[number % 4 == 3])  # every fourth asks for another job by the same key
        barrier.wait()
        try:
            job, is_new = store.submit(submission, now, f"key-{round_number}")
        except IdempotencyConflictError:
            return None
        return job.id, is_new

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        answers = list(pool.map(submit, range(NUM_THREADS)))
    made = [answer for answer in answers if answer is not None]
    assert len({job_id for job_id, _ in made}) == 1
    assert sum(is_new for _, is_new in made) == 1
    assert len(made) in {NUM_THREADS // 4, NUM_THREADS * 3 // 4}, "whoever asked for the other job was told so"
    [waiting] = store.waiting(100, now)
    assert waiting.id == made[0][0]


def test_one_of_many_that_move_a_job_at_a_time_does(engine: Engine) -> None:
    store, barrier = Store(engine), Barrier(NUM_THREADS)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    job, _ = store.submit(Submission("default", SPECS[0]), now)

    def move(_: int) -> bool:
        change = Transition(job.id, 1, JobState.QUEUED, JobState.STARTING, Reason.ATTEMPT_SUBMITTED)
        barrier.wait()
        try:
            store.transition(change, now)
        except StaleTransitionError:
            return False
        return True

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        assert sum(pool.map(move, range(NUM_THREADS))) == 1
    followed = store.follow(job.id, 0, 100)
    assert followed is not None
    assert [event.state for event in followed[1]] == [JobState.QUEUED, JobState.STARTING]
