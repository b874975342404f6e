"""What the cluster was seen to have, and whom it left without a place: it may get back a machine that it has just lost.

All in memory: a process that begins to look knows nothing of what was before, and waits once more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from service.cluster.launcher import Node
from service.jobs.ids import new_id

_NEVER = datetime.min.replace(tzinfo=UTC)


class Machines:
    """Remembers the last look at the machines, and since when jobs have been stranded."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] | None = None
        self._seen_at = _NEVER
        self._changed_at = _NEVER
        self._stranded: dict[str, datetime] = {}

    def judged_from(self, nodes: Sequence[Node], watching_since: datetime, now: datetime, patience_s: float) -> str:
        """Queued jobs whose ids are no smaller never fit if these machines are too few; older ones may have counted on
        others, which are waited for. After `patience_s` without a change this holds for all.

        What was before `watching_since` nobody knows: it counts as a change.
        """
        seen = sorted((node.num_cpus, node.num_gpus) for node in nodes)
        if self._seen is not None and seen != self._seen:
            self._changed_at = max(self._changed_at, self._seen_at)  # or later: nobody looks while nobody waits
        self._seen, self._seen_at = seen, now
        changed_at = max(self._changed_at, watching_since)
        return "" if now - changed_at > timedelta(seconds=patience_s) else new_id(changed_at, 0)

    def out_of_sight(self, now: datetime) -> None:
        """The cluster does not answer: nobody knows what it will come back with."""
        self._changed_at = now

    def stranded_for(
        self, job_ids: Collection[str], watching_since: datetime, now: datetime, patience_s: float
    ) -> list[str]:
        """These jobs are stranded; ids of those that were so in each look for longer than `patience_s`."""
        self._stranded = {job_id: max(self._stranded.get(job_id, now), watching_since) for job_id in job_ids}
        return [job_id for job_id, since in self._stranded.items() if now - since > timedelta(seconds=patience_s)]
