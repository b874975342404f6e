"""Rank 0's heartbeats to the service, from a thread, about once a second; the answer says whether to go on.

Training never waits for the service: what could not be delivered is sent again. A run ends when the service says so; at
once, when the service no longer knows this attempt (another has taken its place); and with a last checkpoint after ten
minutes without any answer: by then the service may have given the job to another attempt, or will.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Self

import httpx
from pydantic import ValidationError

from trainer.replica_process import MlflowRun
from trainer.run_schema import PROBLEM_JSON, EpochSummary, Heartbeat, HeartbeatReply, Progress
from trainer.supervisor import Order

INTERVAL_S = 1.0
LEASE_S = 600.0
TIMEOUT_S = 5.0
MAX_EPOCHS = 200
"""Finished epochs in one heartbeat: a run of thousands that is taken up again tells them in several, none too large."""
FENCED_STATUSES: Final = frozenset({401, 404, 409})
"""Answers that mean: this attempt is no longer the current one."""

log = logging.getLogger(__name__)


class HeartbeatSupervisor:
    """Tells the service where the run stands, until it is closed. A context manager."""

    def __init__(
        self,
        url: str,
        token: str,
        mlflow_run: Callable[[], MlflowRun | None] = lambda: None,
        *,
        interval_s: float = INTERVAL_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self._url, self._mlflow_run = url, mlflow_run
        self._interval_s, self._lease_s = interval_s, lease_s
        direct = httpx.HTTPTransport()  # no proxy of the environment stands between us, but its CAs are believed
        self._client = httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_S, transport=direct)
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._unacknowledged: list[EpochSummary] = []
        self._closing, self._due = threading.Event(), threading.Event()
        self._order: Order = "continue"
        self._is_told = False
        self._answered_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="hush-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Send what is left, once."""
        self._closing.set()
        self._due.set()
        self._thread.join()
        self._client.close()

    @property
    def order(self) -> Order:
        """What the service said last; `stop` if it is lost."""
        return self._order

    def began(self, finished_epochs: tuple[EpochSummary, ...]) -> None:
        """Send the epochs of before again: their acknowledgement may have been lost with the process that got it."""
        with self._lock:
            self._unacknowledged.extend(finished_epochs)

    def progress(self, progress: Progress) -> None:
        """Remember for the next heartbeat; the first is sent at once."""
        with self._lock:
            is_first, self._progress = self._progress is None, progress
        if is_first:
            self._due.set()

    def epoch_finished(self, summary: EpochSummary) -> None:
        """Remember until acknowledged."""
        with self._lock:
            self._unacknowledged.append(summary)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._due.wait(self._interval_s)
            self._due.clear()
            is_last = self._closing.is_set()
            self._beat()

    def _beat(self) -> None:
        with self._lock:
            progress, summaries = self._progress, tuple(self._unacknowledged[:MAX_EPOCHS])
        if progress is None:
            self._answered_s = time.monotonic()  # nobody was asked yet, however long a run takes to begin
            return
        run = self._mlflow_run()
        beat = Heartbeat(
            progress=progress,
            finished_epochs=summaries,
            mlflow_run_id=None if run is None else run.run_id,
            mlflow_experiment_id=None if run is None else run.experiment_id,
        )
        reply = self._send(beat)
        if reply is not None:
            self._answered_s, self._is_told = time.monotonic(), False
            with self._lock:
                del self._unacknowledged[: len(summaries)]
            self._heed(reply.action)
        elif time.monotonic() - self._answered_s > self._lease_s and self._order == "continue":
            log.warning("stopping: the service at %s has not answered for %.0f s", self._url, self._lease_s)
            self._order = "stop"

    def _heed(self, order: Order) -> None:
        if order not in {"continue", self._order}:  # once told to end, it ends
            log.info("the service says: %s", order)
            self._order = order

    def _send(self, beat: Heartbeat) -> HeartbeatReply | None:
        """The service's answer; None if there was none that could be understood."""
        headers = {"Content-Type": "application/json"}
        try:
            response = self._client.post(self._url, content=beat.model_dump_json(), headers=headers)
            if _is_fenced_off(response):
                if self._order != "abort":
                    log.warning("stopping: the service answered %d, this attempt is over", response.status_code)
                return HeartbeatReply(action="abort")
            response.raise_for_status()
            return HeartbeatReply.model_validate_json(response.content)
        except (httpx.HTTPError, ValidationError) as error:
            level = logging.DEBUG if self._is_told else logging.WARNING  # once is enough until one is delivered
            log.log(level, "heartbeat not delivered, and tried again: %s", error)
            self._is_told = True
            return None


def _is_fenced_off(response: httpx.Response) -> bool:
    """Whether it is the service that refuses the attempt, and not some proxy before a service that is away."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
    return response.status_code in FENCED_STATUSES and kind == PROBLEM_JSON
