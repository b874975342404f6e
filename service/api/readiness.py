"""Whether every part that jobs need answers: asked of the parts once for all who ask at the same time.

Strangers may ask, as often as they like, and a part that hangs takes seconds: they wait for one another without holding
a thread each, of which the API has few.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.to_thread
import httpx

from service.cluster.launcher import Launcher
from service.control.reconciler_thread import Reconciler
from service.schemas import Health
from service.store.store import Store

logger = logging.getLogger(__name__)

MAX_SILENCE_S = 30.0
"""A reconciler whose last look is older than this hangs; a look at many jobs on a slow cluster takes seconds."""
_MLFLOW_TIMEOUT_S = 3.0


class Readiness:
    """Asks database, reconciler, Ray and, where there is one, MLflow."""

    def __init__(self, store: Store, reconciler: Reconciler, launcher: Launcher, mlflow_uri: str | None) -> None:
        """Asks nothing yet."""
        self._reconciler = reconciler
        self._launcher = launcher
        self._mlflow_uri = mlflow_uri
        self._checks: dict[str, Callable[[], None]] = {
            "database": store.ping,
            "reconciler": self._check_reconciler,
            "ray": self._check_ray,
        }
        if mlflow_uri is not None:
            self._checks["mlflow"] = self._check_mlflow
        self._lock = anyio.Lock()
        self._known: tuple[float, Health] | None = None
        """When the newest answer was begun to be looked for, and that answer."""

    async def now(self) -> Health:
        """The answer of a look that began no earlier than this call."""
        asked_at = time.monotonic()
        async with self._lock:
            if self._known is None or self._known[0] < asked_at:
                began_at = time.monotonic()
                self._known = began_at, await anyio.to_thread.run_sync(self._look)
            return self._known[1]

    def _look(self) -> Health:
        with ThreadPoolExecutor(len(self._checks)) as pool:
            states = dict(zip(self._checks, pool.map(_state, self._checks.values()), strict=True))
        ok = all(state == "ok" for state in states.values())
        return Health(status="ok" if ok else "unavailable", checks=states)

    def _check_reconciler(self) -> None:
        silent_s = self._reconciler.last_look_s
        if silent_s is None or silent_s > MAX_SILENCE_S:
            raise RuntimeError("the reconciler does not look after the jobs")

    def _check_ray(self) -> None:
        if not self._launcher.nodes():
            raise RuntimeError("the cluster has no machine")

    def _check_mlflow(self) -> None:
        httpx.get(f"{self._mlflow_uri}/health", timeout=_MLFLOW_TIMEOUT_S, trust_env=False).raise_for_status()


def _state(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:
        logger.info("not ready: %s", error)
        return f"unavailable ({type(error).__name__})"
    return "ok"
