"""The store against a model: whatever is asked in whatever order, the rules of a job's life hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from postgres_server import empty
from sqlalchemy import Engine

from service.jobs.records import IdempotencyConflictError, StaleTransitionError, Submission, Transition
from service.jobs.states import TERMINAL_STATES, TRANSITIONS, JobState, Reason, may_become
from service.store.database import open_engine
from service.store.store import (
    FencedOffError,
    Store,
    UnknownAttemptError,
    WrongTokenError,
)
from service.store.writes import IllegalTransitionError, hash_token
from trainer.run_schema import EpochSummary, Heartbeat, Progress
from trainer.spec import JobSpec

STATES = st.sampled_from(sorted(JobState))
SPECS = [JobSpec.model_validate({"name": name, "data": {"manifest": "/m"}}) for name in ("a", "b")]


class JobsLife(RuleBasedStateMachine):
    """One job, asked all sorts of things; beside it what must be true of it."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        empty(engine)
        self.store = Store(engine)
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.job, _ = self.store.submit(Submission("default", SPECS[0]), self.now)
        self.store.set_token(self.job.id, 1, hash_token("token-1"))
        self.state, self.attempt, self.num_failures = JobState.QUEUED, 1, 0
        self.history = [JobState.QUEUED]
        self.epochs: list[int] = []

    def _moved(self, new: JobState) -> None:
        self.state = new
        self.history.append(new)

    @rule(state=STATES, new=STATES, next_attempt=st.booleans(), attempt_off=st.sampled_from([0, 0, 0, -1, 1]))
    def transition(self, state: JobState, new: JobState, next_attempt: bool, attempt_off: int) -> None:
        self._ask(state, new, next_attempt, self.attempt + attempt_off)

    @precondition(lambda self: self.state not in TERMINAL_STATES)
    @rule(data=st.data(), next_attempt=st.booleans())
    def legal_transition(self, data: st.DataObject, next_attempt: bool) -> None:
        new = data.draw(st.sampled_from(sorted(TRANSITIONS[self.state])))
        self._ask(self.state, new, next_attempt, self.attempt)

    def _ask(self, state: JobState, new: JobState, next_attempt: bool, attempt: int) -> None:
        self.now += timedelta(seconds=1)
        change = Transition(self.job.id, attempt, state, new, Reason.DRIVER_LOST, "words", next_attempt)
        if not may_become(state, new):
            with pytest.raises(IllegalTransitionError):
                self.store.transition(change, self.now)
        elif (state, attempt) != (self.state, self.attempt):
            with pytest.raises(StaleTransitionError):
                self.store.transition(change, self.now)
        else:
            self.store.transition(change, self.now)
            self._moved(new)
            if next_attempt:
                self.attempt, self.num_failures = self.attempt + 1, self.num_failures + 1
                self.store.set_token(self.job.id, self.attempt, hash_token(f"token-{self.attempt}"))

    @rule()
    def cancel(self) -> None:
        self.now += timedelta(seconds=1)
        job = self.store.request_cancel(self.job.id, self.now)
        if self.state is JobState.QUEUED:
            self._moved(JobState.CANCELLED)
        elif self.state not in TERMINAL_STATES | {JobState.CANCELLING}:
            self._moved(JobState.CANCELLING)
        assert job is not None
        assert job.state is self.state

    @rule(
        attempt_off=st.sampled_from([0, 0, 0, -1, 1]),
        good_token=st.sampled_from([True, True, True, False]),
        epochs=st.lists(st.integers(1, 4), max_size=3),
        loss=st.none() | st.floats(),
    )
    def heartbeat(self, attempt_off: int, good_token: bool, epochs: list[int], loss: float | None) -> None:
        number = self.attempt + attempt_off
        token = f"token-{number}" if good_token else "token"
        progress = Progress(phase="training", epoch=1, num_epochs=4, step=1, num_steps=4, loss=loss)
        finished = tuple(EpochSummary(epoch=epoch, metrics={"train/loss": loss or 0.0}) for epoch in epochs)
        beat = Heartbeat(progress=progress, finished_epochs=finished)
        if not 1 <= number <= self.attempt:
            with pytest.raises(UnknownAttemptError):
                self.store.heartbeat(self.job.id, number, token, beat, self.now)
        elif not good_token:
            with pytest.raises(WrongTokenError):
                self.store.heartbeat(self.job.id, number, token, beat, self.now)
        elif number != self.attempt or self.state in TERMINAL_STATES:
            with pytest.raises(FencedOffError):
                self.store.heartbeat(self.job.id, number, token, beat, self.now)
        else:
            reply = self.store.heartbeat(self.job.id, number, token, beat, self.now)
            if self.state in {JobState.STARTING, JobState.RECOVERING}:
                self._moved(JobState.RUNNING)
            assert reply.action == ("stop" if self.state is JobState.CANCELLING else "continue")
            self.epochs += [epoch for epoch in dict.fromkeys(epochs) if epoch not in self.epochs]

    @invariant()
    def the_job_is_as_the_model_says(self) -> None:
        job = self.store.get(self.job.id)
        assert job is not None
        assert (job.state, job.attempt, job.num_failures) == (self.state, self.attempt, self.num_failures)
        assert (job.ended_at is not None) == (self.state in TERMINAL_STATES)
        assert (job.started_at is not None) == (JobState.RUNNING in self.history)
        assert job.progress is None or job.progress.loss is None or math.isfinite(job.progress.loss)

    @invariant()
    def there_is_one_event_for_each_transition(self) -> None:
        followed = self.store.follow(self.job.id, 0, 10_000)
        assert followed is not None
        events = followed[1]
        assert [event.state for event in events if event.kind == "state"] == self.history
        assert [event.epoch.epoch for event in events if event.epoch is not None] == self.epochs
        assert [event.id for event in events] == sorted({event.id for event in events})

    @invariant()
    def no_transition_leaves_a_terminal_state(self) -> None:
        assert not TERMINAL_STATES & set(self.history[:-1])

    @invariant()
    def it_is_live_until_it_has_ended(self) -> None:
        live = [(entry.job.id, entry.attempt.number) for entry in self.store.live()]
        assert live == ([] if self.state in TERMINAL_STATES else [(self.job.id, self.attempt)])


class Submissions(RuleBasedStateMachine):
    """One idempotency key, one job."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        empty(engine)
        self.store = Store(engine)
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.by_key: dict[str, tuple[str, JobSpec]] = {}
        self.ids: list[str] = []

    @rule(key=st.none() | st.sampled_from(["x", "y"]), spec=st.sampled_from(SPECS))
    def submit(self, key: str | None, spec: JobSpec) -> None:
        self.now += timedelta(milliseconds=1)
        known = self.by_key.get(key or "")
        if known is not None and known[1] != spec:
            with pytest.raises(IdempotencyConflictError):
                self.store.submit(Submission("default", spec), self.now, key)
            return
        job, is_new = self.store.submit(Submission("default", spec), self.now, key)
        assert is_new == (known is None)
        assert known is None or job.id == known[0]
        if is_new:
            self.ids.append(job.id)
        if key is not None:
            self.by_key[key] = (job.id, spec)

    @invariant()
    def all_jobs_are_there_in_order(self) -> None:
        assert [entry.job.id for entry in self.store.live()] == self.ids


FEW = settings(max_examples=25, stateful_step_count=25, deadline=None)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def test_a_jobs_life(engine: Engine) -> None:
    run_state_machine_as_test(lambda: JobsLife(engine), settings=FEW)


def test_submissions(engine: Engine) -> None:
    run_state_machine_as_test(lambda: Submissions(engine), settings=FEW)
