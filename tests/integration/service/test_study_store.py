"""Studies in the database, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.control.early_stop import EarlyStopper
from service.jobs.records import IdempotencyConflictError, LeaseLostError, StaleTransitionError, Submission, Transition
from service.jobs.states import JobState, Reason
from service.store.database import open_engine
from service.store.leases import Leases
from service.store.store import Store
from service.store.studies import Studies
from service.store.writes import hash_token
from service.studies.expansion import expand
from service.studies.records import StudyRecord
from service.studies.study_spec import StudySpec
from trainer.run_schema import EpochSummary, Heartbeat, Progress

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Database:
    store: Store
    studies: Studies
    leases: Leases

    def create(self, spec: StudySpec, key: str | None = None) -> tuple[StudyRecord, bool]:
        return self.studies.create("default", spec, [job.spec for job in expand(spec)], NOW, key)

    def run(self, job_id: str) -> None:
        """Have a queued job train."""
        self.store.set_token(job_id, 1, hash_token("token"))
        for state, new in ((JobState.QUEUED, JobState.STARTING), (JobState.STARTING, JobState.RUNNING)):
            self.store.transition(Transition(job_id, 1, state, new, Reason.ATTEMPT_SUBMITTED), NOW)

    def tell(self, job_id: str, epoch: int, accuracy: float) -> None:
        progress = Progress(phase="training", epoch=epoch, num_epochs=10, step=epoch, num_steps=10)
        summary = EpochSummary(epoch=epoch, metrics={"val_given/accuracy": accuracy})
        self.store.heartbeat(job_id, 1, "token", Heartbeat(progress=progress, finished_epochs=(summary,)), NOW)

    def states(self, study: StudyRecord) -> list[tuple[JobState, Reason]]:
        return [(job.state, job.reason) for job in self.studies.jobs(study.id)]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    engine = open_engine(database_url)
    yield Database(Store(engine), Studies(engine), Leases(engine))
    engine.dispose()


def study(num_points: int = 3, **changes: Any) -> StudySpec:
    base = {"data": {"manifest": "/m"}, "method": {"kind": "sam"}}
    grid = {"method.rho": [i / num_points for i in range(num_points)]}
    return StudySpec.model_validate({"name": "study", "base": base, "grid": grid, **changes})


def test_a_study_is_stored_as_it_was_asked_for(database: Database) -> None:
    asked = study(points=[{"method": {"kind": "ivon", "ess": 1e4}}], seeds=[1, 0], early_stop={"brackets": 2})
    made, is_new = database.create(asked)
    assert is_new
    assert database.studies.get(made.id) == made
    assert made.spec == asked
    assert list(made.spec.grids[0]) == ["method.rho"]
    assert database.studies.get("0" * 26) is None
    planned = expand(asked)
    stored = database.studies.whole_jobs(made.id)
    assert [job.spec for job in stored] == [job.spec for job in planned]
    assert [job.study_index for job in stored] == list(range(8))
    assert [job.id for job in database.studies.jobs(made.id)] == [job.id for job in stored]
    assert [job.id for job in stored] == sorted(job.id for job in stored)
    waiting = database.store.waiting(100, NOW)
    assert [job.id for job in waiting] == [job.id for job in stored]  # they start in the study's order


def test_a_thousand_jobs_are_stored_or_none(database: Database) -> None:
    made, _ = database.create(study(1000))
    assert database.studies.counts([made.id]) == {made.id: {(JobState.QUEUED, Reason.SUBMITTED): 1000}}
    with pytest.raises(RuntimeError):
        database.studies.create("default", study(3), _breaks_off(study(3)), NOW)  # type: ignore[arg-type]
    assert [found.id for found in database.studies.page("default", 10)] == [made.id]
    assert not hasattr(database.studies.page("default", 10)[0], "spec"), "a page of specs may have gigabytes"
    assert len(database.store.waiting(2000, NOW)) == 1000


class _breaks_off(list[Any]):  # noqa: N801 (reads as what it does)
    """The jobs of a study, of which the second cannot be had."""

    def __init__(self, spec: StudySpec) -> None:
        super().__init__(job.spec for job in expand(spec))

    def __iter__(self) -> Iterator[Any]:
        yield self[0]
        yield self[1]
        raise RuntimeError("breaks off")


def test_posts_at_the_same_time_with_one_key_make_one_study(database: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: database.create(study(), "key"), range(16)))
    assert len({record.id for record, _ in made}) == 1
    assert sum(is_new for _, is_new in made) == 1
    assert len(database.store.waiting(100, NOW)) == 3
    with pytest.raises(IdempotencyConflictError, match=made[0][0].id):
        database.create(study(4), "key")
    with pytest.raises(IdempotencyConflictError, match=made[0][0].id):
        database.store.submit(Submission("default", expand(study())[0].spec), NOW, "key")
    other, is_new = database.studies.create("other", study(), [job.spec for job in expand(study())], NOW, "key")
    assert is_new
    assert other.tenant == "other"


def test_cancelling_takes_all_live_jobs_at_once(database: Database) -> None:
    made, _ = database.create(study(4))
    jobs = database.studies.jobs(made.id)
    for job in jobs[:2]:
        database.run(job.id)
    database.store.transition(
        Transition(jobs[0].id, 1, JobState.RUNNING, JobState.SUCCEEDED, Reason.RESULT_COMPLETE), NOW
    )
    cancelled = database.studies.cancel(made.id, NOW + timedelta(seconds=5))
    assert cancelled.cancelled_at == NOW + timedelta(seconds=5)
    assert database.states(made) == [
        (JobState.SUCCEEDED, Reason.RESULT_COMPLETE),
        (JobState.CANCELLING, Reason.STUDY_CANCELLED),
        (JobState.CANCELLED, Reason.STUDY_CANCELLED),
        (JobState.CANCELLED, Reason.STUDY_CANCELLED),
    ]
    assert [job.cancel_mode for job in database.studies.whole_jobs(made.id)][1] == "graceful"
    again = database.studies.cancel(made.id, NOW + timedelta(seconds=9), "now")
    assert again.cancelled_at == cancelled.cancelled_at
    assert [job.cancel_mode for job in database.studies.whole_jobs(made.id)][1] == "now"
    followed = database.store.follow(jobs[1].id, 0, 100)
    assert followed is not None
    assert [event.state for event in followed[1]].count(JobState.CANCELLING) == 1


def test_cancelling_beside_jobs_that_move(database: Database) -> None:
    made, _ = database.create(study(30))
    ids = [job.id for job in database.studies.jobs(made.id)]

    def start(job_id: str) -> bool:
        try:
            database.run(job_id)
        except StaleTransitionError:  # it was cancelled first
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        started = pool.map(start, ids)
        cancelling = [pool.submit(database.studies.cancel, made.id, NOW) for _ in range(2)]
        ran = list(started)
        assert {call.result().cancelled_at for call in cancelling} == {NOW}
    by_id = {job.id: job for job in database.studies.jobs(made.id)}
    for job_id, did_run in zip(ids, ran, strict=True):
        state, reason = by_id[job_id].state, by_id[job_id].reason
        assert reason is Reason.STUDY_CANCELLED
        assert state is JobState.CANCELLING if did_run else state in {JobState.CANCELLED, JobState.CANCELLING}


def test_hopeless_jobs_are_stopped_and_so_they_are_by_whoever_leads_next(database: Database) -> None:
    plain, _ = database.create(study(2, name="plain"))
    made, _ = database.create(study(4, early_stop={"reduction_factor": 2}))
    jobs = [job.id for job in database.studies.jobs(made.id)]
    for job_id in [*jobs, *(job.id for job in database.studies.jobs(plain.id))]:
        database.run(job_id)
    assert [study_id for study_id, _ in database.studies.with_early_stop()] == [made.id]
    leader = EarlyStopper(database.studies)
    for job_id, accuracy in zip(jobs[:3], (0.5, 0.4, 0.6), strict=True):
        database.tell(job_id, 1, accuracy)
        leader.stop_hopeless(NOW, None)
    expected = [JobState.RUNNING, JobState.CANCELLING, JobState.RUNNING, JobState.RUNNING]
    assert [state for state, _ in database.states(made)] == expected
    assert database.states(made)[1] == (JobState.CANCELLING, Reason.EARLY_STOPPED)
    EarlyStopper(database.studies).stop_hopeless(NOW, None)
    assert [state for state, _ in database.states(made)] == expected
    database.tell(jobs[3], 1, 0.1)
    EarlyStopper(database.studies).stop_hopeless(NOW, None)
    assert database.states(made)[3] == (JobState.CANCELLING, Reason.EARLY_STOPPED)
    assert {state for state, _ in database.states(plain)} == {JobState.RUNNING}


def test_who_does_not_lead_any_more_stops_nothing(database: Database) -> None:
    made, _ = database.create(study(2, early_stop={}))
    jobs = [job.id for job in database.studies.jobs(made.id)]
    for job_id, accuracy in zip(jobs, (0.9, 0.1), strict=True):
        database.run(job_id)
        database.tell(job_id, 1, accuracy)
    fence = database.leases.acquire("reconciler", "first", NOW, 10)
    assert database.leases.acquire("reconciler", "second", NOW + timedelta(seconds=11), 10) is not None
    with pytest.raises(LeaseLostError):
        EarlyStopper(database.studies).stop_hopeless(NOW, fence)
    assert {state for state, _ in database.states(made)} == {JobState.RUNNING}
