"""Who follows a job is woken when there is something to tell: one task looks after all followers of this process.

It asks the database for all followed jobs at once; what is new of a job its followers then read themselves. A follower
holds no events, only a flag, so one whose client reads slowly costs no memory and misses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.to_thread
from anyio import CapacityLimiter

from service.store.event_log import EventLog, News, Stamp

logger = logging.getLogger(__name__)

POLL_S = 0.25
NUM_READERS = 4
"""Threads that read for followers. Few: a thousand of them must not keep requests from the database."""


class Follower:
    """Somebody who follows a job."""

    def __init__(self, read: Callable[[int, int], News], limiter: CapacityLimiter) -> None:
        """`read` is asked for what is new after an event's id, at most so many events."""
        self._read = read
        self._limiter = limiter
        self._woken = asyncio.Event()
        self._woken.set()  # what there is already is news to him

    async def wait(self, timeout_s: float) -> bool:
        """Whether there may be news; False after `timeout_s` without."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            return False
        return True

    async def read(self, after: int, limit: int) -> News:
        """The job, and its first events with ids above `after`. With fewer than `limit` there was no more."""
        self._woken.clear()  # first: what happens while we read wakes us again
        news = await anyio.to_thread.run_sync(self._read, after, limit, limiter=self._limiter)
        if len(news.events) == limit:
            self._woken.set()
        return news

    def wake(self) -> None:
        """Something happened."""
        self._woken.set()


class EventWatch:
    """All followers of this process."""

    def __init__(self, log: EventLog, closing: threading.Event) -> None:
        """`closing` ends `run`, and wakes everybody."""
        self._log = log
        self._closing = closing
        self._followers: dict[str, set[Follower]] = {}
        self._stamps: Mapping[str, Stamp] = {}
        self.readers = CapacityLimiter(NUM_READERS)
        """Threads for whoever follows something."""

    @property
    def num_followers(self) -> int:
        """Followers now."""
        return sum(len(followers) for followers in self._followers.values())

    @contextmanager
    def following(self, job_id: str) -> Iterator[Follower]:
        """Follow a job that is there, from within the event loop."""
        follower = Follower(partial(self._log.news, job_id), self.readers)
        self._followers.setdefault(job_id, set()).add(follower)
        try:
            yield follower
        finally:
            self._followers[job_id].remove(follower)
            if not self._followers[job_id]:
                del self._followers[job_id]

    async def run(self) -> None:
        """Wake followers until the service closes."""
        while not self._closing.is_set():
            try:
                await self._look()
            except Exception:
                logger.exception("could not look for events; tries again")
            await anyio.sleep(POLL_S)
        self._wake(list(self._followers))

    async def _look(self) -> None:
        """Wake the followers of jobs that have changed. A job seen for the first time counts as changed."""
        followed: Sequence[str] = list(self._followers)
        if not followed:
            self._stamps = {}
            return
        stamps = await anyio.to_thread.run_sync(self._log.stamps, followed, limiter=self.readers)
        changed = [job_id for job_id, stamp in stamps.items() if self._stamps.get(job_id) != stamp]
        self._stamps = stamps
        self._wake(changed)

    def _wake(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            for follower in self._followers.get(job_id, ()):
                follower.wake()
