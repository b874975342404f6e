"""What the cluster was seen to have: one that has just lost a machine may get it back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from service.cluster.launcher import Node
from service.jobs.ids import new_id


class Machines:
    """Remembers the machines of the last look, and when they changed; knows nothing of what was before this process."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] | None = None
        self._changed_at: datetime | None = None

    def judged_from(self, nodes: Sequence[Node], now: datetime, patience_s: float) -> str:
        """Jobs whose ids are no smaller never fit if these machines are too few; older ones may have counted on others,
        which are waited for. After `patience_s` without a change this holds for all."""
        seen = sorted((node.num_cpus, node.num_gpus) for node in nodes)
        if self._seen is not None and seen != self._seen:
            self._changed_at = now
        self._seen = seen
        if self._changed_at is None or now - self._changed_at > timedelta(seconds=patience_s):
            return ""
        return new_id(self._changed_at, 0)
