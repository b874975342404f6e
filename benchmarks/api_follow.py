"""Followers of jobs' events by SSE, while drivers that are none train: what is told, what is missed, what it costs.

Drivers and followers are processes of their own. A driver sends real heartbeats over HTTP, each with a finished epoch.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from benchmarks.api_server import Api
from service.jobs.records import JobRecord, Submission, Transition
from service.jobs.states import JobState, Reason
from service.store.database import open_engine
from service.store.store import Store
from service.store.writes import hash_token
from trainer.run_schema import EpochSummary, Heartbeat, Progress
from trainer.spec import JobSpec

NUM_JOBS = 40
BEAT_S = 1.0
END_S = 120


@dataclass(frozen=True)
class Told:
    """What one follower heard."""

    job_id: str
    event_ids: Sequence[int]
    ended: bool
    num_progress: int


@dataclass(frozen=True)
class Findings:
    """Of all followers."""

    num_followers: int
    num_events: int
    """That should have been told, over all followers."""
    num_missed: int
    num_wrong: int
    """Told twice, out of turn, or not at all there."""
    num_progress: int
    rss_mb_before: float
    rss_mb_early: float
    """A few seconds after all had come."""
    rss_mb_late: float
    """At the end of the time."""


def measure(api: Api, num_followers: int, seconds: float) -> Findings:
    """Follow for `seconds`, then until all jobs have ended."""
    engine = open_engine(api.database_url)
    store = Store(engine)
    started = [_start(store, number) for number in range(min(NUM_JOBS, num_followers))]
    before = api.rss_mb
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        followed = [started[number % len(started)].id for number in range(num_followers)]
        following = pool.submit(follow_all, api.port, api.token, followed, seconds + END_S)
        driving = pool.submit(drive, api.port, [job.id for job in started], seconds)
        early, late = _watch_memory(api, driving, seconds)
        driving.result()
        for job in started:
            _move(store, job.id, JobState.RUNNING, JobState.SUCCEEDED, Reason.RESULT_COMPLETE)
        told = following.result()
    findings = _compare(store, told, before, early, late)
    engine.dispose()
    return findings


def _compare(store: Store, told: Sequence[Told], before: float, early: float, late: float) -> Findings:
    stored = {job_id: _event_ids(store, job_id) for job_id in {one.job_id for one in told}}
    missed = sum(len(set(stored[one.job_id]) - set(one.event_ids)) for one in told)
    wrong = sum(not one.ended or list(one.event_ids) != stored[one.job_id] for one in told)
    return Findings(
        num_followers=len(told),
        num_events=sum(len(stored[one.job_id]) for one in told),
        num_missed=missed,
        num_wrong=wrong,
        num_progress=sum(one.num_progress for one in told),
        rss_mb_before=round(before, 1),
        rss_mb_early=round(early, 1),
        rss_mb_late=round(late, 1),
    )


def _watch_memory(api: Api, driving: Future[None], seconds: float) -> tuple[float, float]:
    """Medians over the first and the last quarter of the time, once all followers are there."""
    samples = []
    time.sleep(min(10.0, seconds / 4))
    while not driving.done():
        samples.append(api.rss_mb)
        time.sleep(0.25)
    quarter = max(1, len(samples) // 4)
    return statistics.median(samples[:quarter]), statistics.median(samples[-quarter:])


def _start(store: Store, number: int) -> JobRecord:
    spec = JobSpec.model_validate({"name": f"followed-{number}", "data": {"manifest": "/m/manifest.json"}})
    now = datetime.now(UTC)
    job, _ = store.submit(Submission("default", spec), now)
    store.set_token(job.id, 1, hash_token(job.id))
    store.mark_submitted(job.id, 1, now)  # first: the server's reconciler would else submit it, with another token
    _move(store, job.id, JobState.QUEUED, JobState.STARTING, Reason.ATTEMPT_SUBMITTED)
    return job


def _move(store: Store, job_id: str, state: JobState, new: JobState, reason: Reason) -> None:
    store.transition(Transition(job_id, 1, state, new, reason), datetime.now(UTC))


def _event_ids(store: Store, job_id: str) -> list[int]:
    found = store.follow(job_id, 0, 100_000)
    assert found is not None
    return [event.id for event in found[1]]


# ------------------------------------------------------------------------------------------------------- drivers


def drive(port: int, job_ids: Sequence[str], seconds: float) -> None:
    """A heartbeat of each job a second, spread over the second."""
    began, beat = time.monotonic(), 0
    num_beats = max(2, int(seconds / BEAT_S))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1/internal/attempts", trust_env=False) as client:
        for beat in range(1, num_beats + 1):
            for number, job_id in enumerate(job_ids):
                due = began + (beat - 1 + number / len(job_ids)) * BEAT_S
                time.sleep(max(0.0, due - time.monotonic()))
                _beat(client, job_id, beat, num_beats)


def _beat(client: httpx.Client, job_id: str, epoch: int, num_epochs: int) -> None:
    progress = Progress(
        phase="training", epoch=epoch, num_epochs=num_epochs, step=epoch * 100, num_steps=num_epochs * 100, loss=0.5
    )
    summary = EpochSummary(epoch=epoch, metrics={"train/loss": 0.5, "val/accuracy": 0.9})
    body = Heartbeat(progress=progress, finished_epochs=(summary,)).model_dump_json()
    headers = {"Authorization": f"Bearer {job_id}", "Content-Type": "application/json"}
    answer = client.post(f"/{job_id}/1/heartbeat", content=body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text


# ----------------------------------------------------------------------------------------------------- followers


def follow_all(port: int, token: str, job_ids: Sequence[str], timeout_s: float) -> list[Told]:
    """A follower for each of these ids, on plain sockets: many of them must not slow each other."""

    async def main() -> list[Told]:
        async with asyncio.timeout(timeout_s):
            return list(await asyncio.gather(*(_follow(port, token, job_id) for job_id in job_ids)))

    return asyncio.run(main())


async def _follow(port: int, token: str, job_id: str) -> Told:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = (
        f"GET /api/v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
        f"Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    )
    writer.write(request.encode())
    ids: list[int] = []
    num_progress, ended = 0, False
    while line := await reader.readline():
        field, _, text = line.decode().strip().partition(": ")
        if field == "id":
            ids.append(int(text))
        elif field == "event":
            ended = ended or text == "end"
            num_progress += text == "progress"
    writer.close()
    return Told(job_id, ids, ended, num_progress)
