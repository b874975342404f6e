"""Following jobs: whoever follows is told everything, in order, however many follow and whatever happens meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest
from service_stand_ins import RunningService
from sqlalchemy import Engine
from stored_jobs import beat, move, start_job

from service.api.event_watch import EventWatch, Follower
from service.jobs.records import JobRecord
from service.jobs.states import TERMINAL_STATES, JobState, Reason
from service.store.database import open_engine
from service.store.event_log import EventLog, Stamp
from service.store.store import Store

NUM_JOBS, FOLLOWERS_PER_JOB, NUM_EPOCHS = 12, 5, 15
DEADLINE_S = 120


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def live_through(store: Store, job: JobRecord) -> None:
    for epoch in range(1, NUM_EPOCHS + 1):
        beat(store, job, epoch, NUM_EPOCHS)
    move(store, job, JobState.SUCCEEDED, Reason.RESULT_COMPLETE)


async def follow(follower: Follower, limit: int) -> list[int]:
    """Ids of all events of a job, read until it has ended."""
    ids: list[int] = []
    while True:
        assert await follower.wait(DEADLINE_S)
        news = await follower.read(ids[-1] if ids else 0, limit)
        ids += [event.id for event in news.events]
        if len(news.events) < limit and news.state in TERMINAL_STATES:
            return ids


async def follow_all(
    watch: EventWatch, jobs: Sequence[JobRecord], told: dict[str, list[list[int]]], limit: int
) -> None:
    async def follow_one(job: JobRecord) -> None:
        with watch.following(job.id) as follower:
            told.setdefault(job.id, []).append(await follow(follower, limit))

    async with anyio.create_task_group() as tasks:
        for job in jobs:
            for _ in range(FOLLOWERS_PER_JOB):
                tasks.start_soon(follow_one, job)


@pytest.mark.parametrize("limit", [200, 3])
def test_everybody_is_told_everything_in_order(engine: Engine, limit: int) -> None:
    store, closing = Store(engine), threading.Event()
    jobs = [start_job(store, f"job-{number}") for number in range(NUM_JOBS)]
    watch, told = EventWatch(EventLog(engine), closing), {}

    async def main() -> None:
        with ThreadPoolExecutor(6) as writers, anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch.run)
                ended = [writers.submit(live_through, store, job) for job in jobs]
                await follow_all(watch, jobs, told, limit)
                closing.set()
            for future in ended:
                future.result()

    anyio.run(main)
    for job in jobs:
        found = store.follow(job.id, 0, 1000)
        assert found is not None
        assert told[job.id] == [[event.id for event in found[1]]] * FOLLOWERS_PER_JOB
        assert len(found[1]) == NUM_EPOCHS + 4
    assert watch.num_followers == 0


class LogThatFailsAtFirst(EventLog):
    """The database is away for the first looks."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.num_looks = 0

    def stamps(self, job_ids: Sequence[str]) -> dict[str, Stamp]:
        self.num_looks += 1
        if self.num_looks <= 2:
            raise ConnectionError("away")
        return super().stamps(job_ids)


def test_a_watch_outlives_a_database_that_is_away(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    store, closing = Store(engine), threading.Event()
    job = start_job(store)
    log = LogThatFailsAtFirst(engine)
    watch = EventWatch(log, closing)

    async def main() -> list[int]:
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch.run)
                with watch.following(job.id) as follower:
                    await follower.read(0, 200)
                    await anyio.to_thread.run_sync(live_through, store, job)
                    ids = await follow(follower, 200)
                closing.set()
        return ids

    assert len(anyio.run(main)) == NUM_EPOCHS + 4
    assert log.num_looks > 2
    assert caplog.text.count("could not look for events") == 2


def test_nobody_waits_for_ever_when_the_service_closes(engine: Engine) -> None:
    closing = threading.Event()
    watch = EventWatch(EventLog(engine), closing)
    job = start_job(Store(engine))

    async def main() -> bool:
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch.run)
                with watch.following(job.id) as follower:
                    await follower.read(0, 200)
                    while await follower.wait(0.6):  # the watch sees the job for the first time
                        await follower.read(0, 200)
                    closing.set()
                    return await follower.wait(DEADLINE_S)

    assert anyio.run(main)


def test_a_client_that_goes_away_is_forgotten(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, name="waits")
    watch = service.server.app.state.context.watch
    headers = {"Accept": "text/event-stream", "Authorization": service.client.headers.get("Authorization", "")}
    with httpx.Client(base_url=service.url, headers=headers, trust_env=False) as client:
        streams = []  # a stream that nobody holds is closed
        for number in range(1, 4):
            response = client.send(client.build_request("GET", f"/api/v1/jobs/{job['id']}/events"), stream=True)
            streams.append(response.iter_text())
            assert "event: state" in next(streams[-1])
            assert watch.num_followers == number
    deadline = time.monotonic() + DEADLINE_S
    while watch.num_followers:
        assert time.monotonic() < deadline
        time.sleep(0.05)
