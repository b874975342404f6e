"""What the cluster was seen to have: it may get back a machine that it has just lost, and answer after a silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from service.cluster.launcher import Node
from service.jobs.ids import new_id

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Patience:
    """Of whom it is not said yet that the cluster is too small for them, as they may have counted on what it had."""

    judged_from: str = ""
    """Queued jobs with smaller ids, which are older."""
    recovering_before: datetime = _NEVER
    """Jobs that began to recover at this time or later."""


class Machines:
    """Remembers what the cluster said in the last looks; knows nothing of what was before this process looked."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] | None = None
        self._changed_at = _NEVER
        self._silent_since: datetime | None = None

    def silent(self, now: datetime) -> datetime:
        """The cluster did not answer; since when it has not."""
        self._silent_since = self._silent_since or now
        return self._silent_since

    def patience(
        self, nodes: Sequence[Node], watching_since: datetime, now: datetime, queued_s: float, recovering_s: float
    ) -> Patience:
        """The cluster has these machines. If that has been so for long, they are all it will have.

        Queued jobs wait `queued_s` for a machine to come back, those that recover `recovering_s`. What was before
        `watching_since` nobody knows: it counts as a change.
        """
        self._silent_since = None
        seen = sorted((node.num_cpus, node.num_gpus) for node in nodes)
        if self._seen is not None and seen != self._seen:
            self._changed_at = now
        self._seen = seen
        since = max(self._changed_at, watching_since)
        long_ago, before = now - timedelta(seconds=queued_s), now - timedelta(seconds=recovering_s)
        return Patience("" if since < long_ago else new_id(since, 0), before if since < before else _NEVER)
