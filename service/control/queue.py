"""Whose turn it is: pure functions of who waits, who runs, what the cluster has and what tenants may take.

Priority first, then age, over all tenants alike; a job that recovers keeps the place its age gives it, once its backoff
is over. A job that must wait keeps what it waits for from those behind it, so that a stream of small jobs cannot starve
a large one: room on the cluster, or where its tenant's limit is in the way, its tenant's share. What it does not need,
they may have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from service.cluster.launcher import Node
from service.control.decisions import Move
from service.jobs.records import LiveJob, TenantLimits, WaitingJob
from service.jobs.states import JobState, Reason
from trainer.spec import ResourcesSpec

_SLACK = 1e-6
"""Sums of fractional CPUs are not exact."""


@dataclass(frozen=True)
class Limits:
    """What each tenant's jobs may take at a time."""

    default: TenantLimits
    own: Mapping[str, TenantLimits] = field(default_factory=dict)
    """Of tenants that have limits of their own; what these leave open is as the default says."""

    def of(self, tenant: str) -> TenantLimits:
        """The limits of one tenant."""
        own = self.own.get(tenant, TenantLimits())
        jobs, workers = own.max_running_jobs, own.max_workers
        return TenantLimits(
            self.default.max_running_jobs if jobs is None else jobs,
            self.default.max_workers if workers is None else workers,
        )


@dataclass
class _Room:
    """What is left: it falls below zero where a job that waits has kept more than there is."""

    cpus: float
    gpus: float

    def holds(self, resources: ResourcesSpec) -> bool:
        cpus, gpus = _total(resources)
        return cpus <= self.cpus + _SLACK and (gpus == 0 or gpus <= self.gpus + _SLACK)

    def take(self, resources: ResourcesSpec) -> None:
        cpus, gpus = _total(resources)
        self.cpus, self.gpus = self.cpus - cpus, self.gpus - gpus


@dataclass
class _Share:
    """What is left of a tenant's limits; infinite where there is none."""

    num_jobs: float
    num_workers: float

    def holds(self, resources: ResourcesSpec) -> bool:
        return self.num_jobs >= 1 and self.num_workers >= resources.num_workers

    def take(self, resources: ResourcesSpec) -> None:
        self.num_jobs, self.num_workers = self.num_jobs - 1, self.num_workers - resources.num_workers


class _Shares:
    """The shares of all tenants."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_tenant: dict[str, _Share] = {}

    def of(self, tenant: str) -> _Share:
        if tenant not in self._by_tenant:
            limits = self._limits.of(tenant)
            self._by_tenant[tenant] = _Share(_or_inf(limits.max_running_jobs), _or_inf(limits.max_workers))
        return self._by_tenant[tenant]


def _or_inf(limit: int | None) -> float:
    return float("inf") if limit is None else limit


def has_room(active: Sequence[LiveJob], nodes: Sequence[Node]) -> bool:
    """Whether any job at all could start now: each takes some CPU."""
    return _room(active, nodes).cpus > _SLACK


def _room(active: Sequence[LiveJob], nodes: Sequence[Node]) -> _Room:
    room = _Room(sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes))
    for live in active:
        room.take(live.job.spec.resources)
    return room


def plan_queue(
    waiting: Sequence[WaitingJob], active: Sequence[LiveJob], nodes: Sequence[Node], limits: Limits, now: datetime
) -> list[tuple[WaitingJob, Move]]:
    """Which waiting jobs to start now, in that order."""
    room, shares = _room(active, nodes), _Shares(limits)
    for live in active:
        shares.of(live.job.tenant).take(live.job.spec.resources)
    starts = []
    for job in sorted(waiting, key=lambda waiter: (-waiter.priority, waiter.id)):
        if not _may_start(job, nodes, limits, now):
            continue
        share = shares.of(job.tenant)
        within_limits, fits = share.holds(job.resources), room.holds(job.resources)
        share.take(job.resources)
        if within_limits:
            room.take(job.resources)
        if within_limits and fits:
            recovers = job.state is JobState.RECOVERING
            reason = Reason.NEW_ATTEMPT if recovers else Reason.ATTEMPT_SUBMITTED
            starts.append((job, Move(JobState.STARTING, reason)))
    return starts


def _may_start(job: WaitingJob, nodes: Sequence[Node], limits: Limits, now: datetime) -> bool:
    """Whether a job takes part at all: its backoff is over, and room for it may come."""
    if job.not_before is not None and job.not_before > now:
        return False
    return why_never(job.resources, nodes, limits.of(job.tenant)) is None


def refuse(
    waiting: Sequence[WaitingJob], nodes: Sequence[Node], limits: Limits, judged_from: str = ""
) -> list[tuple[WaitingJob, Move]]:
    """Which queued jobs to fail, because the whole cluster is too small for them, or what their tenant may take.

    Not those with ids below `judged_from`: a cluster that has just lost a machine may get it back. And none while the
    cluster knows no machine at all: a head that has just started does not know its own yet.
    """
    moves = []
    for job in waiting:
        if job.state is not JobState.QUEUED or not nodes:
            continue
        message = _why_not_allowed(job.resources, limits.of(job.tenant))
        if message is None and job.id >= judged_from:
            message = _why_too_large(job.resources, nodes)
        if message is not None:
            moves.append((job, Move(JobState.FAILED, Reason.NEVER_FITS, message)))
    return moves


def stranded(recovering: Sequence[WaitingJob], nodes: Sequence[Node] | None, limits: Limits) -> dict[str, Move]:
    """What becomes, if it stays so, of the jobs that recover and could not start though no other ran; by their ids.

    `nodes` is None while the cluster does not answer.
    """
    moves = {}
    for job in recovering:
        if nodes is None:
            moves[job.id] = Move(JobState.FAILED, Reason.HEAD_LOST, "No new attempt could start: Ray does not answer.")
        elif (message := why_never(job.resources, nodes, limits.of(job.tenant))) is not None:
            moves[job.id] = Move(JobState.FAILED, Reason.NEVER_FITS, message)
    return moves


def why_never(resources: ResourcesSpec, nodes: Sequence[Node], limits: TenantLimits) -> str | None:
    """Why a job could not start even if no other ran, with the numbers; None if it could."""
    return _why_not_allowed(resources, limits) or _why_too_large(resources, nodes)


def _why_not_allowed(resources: ResourcesSpec, limits: TenantLimits) -> str | None:
    if limits.max_workers is not None and resources.num_workers > limits.max_workers:
        return (
            f"The job asks for num_workers {resources.num_workers}; all jobs of its tenant together may have"
            f" {limits.max_workers} workers."
        )
    return "The job's tenant may run 0 jobs." if limits.max_running_jobs == 0 else None


def num_workers_that_fit(nodes: Sequence[Node], resources: ResourcesSpec) -> int:
    """How many of a job's workers the empty cluster holds; one worker never spans two machines."""
    return sum(_workers_on(node, resources) for node in nodes)


def _workers_on(node: Node, resources: ResourcesSpec) -> int:
    by_cpus = int((node.num_cpus + _SLACK) // resources.cpus_per_worker)
    if not resources.gpus_per_worker:
        return by_cpus
    return min(by_cpus, int((node.num_gpus + _SLACK) // resources.gpus_per_worker))


def _total(resources: ResourcesSpec) -> tuple[float, float]:
    """CPUs and GPUs of all workers; the driver and Ray Train's controller take none."""
    return resources.num_workers * resources.cpus_per_worker, resources.num_workers * resources.gpus_per_worker


def _why_too_large(resources: ResourcesSpec, nodes: Sequence[Node]) -> str | None:
    num_fit = num_workers_that_fit(nodes, resources)
    if num_fit >= resources.num_workers:
        return None
    machines = ", ".join(f"{node.num_cpus:g} CPUs and {node.num_gpus:g} GPUs" for node in nodes[:8]) or "no machine"
    more = f" and {len(nodes) - 8} more machines" if len(nodes) > 8 else ""
    return (
        f"The job asks for num_workers {resources.num_workers} with cpus_per_worker {resources.cpus_per_worker:g} and"
        f" gpus_per_worker {resources.gpus_per_worker}; the cluster has {machines}{more}, which holds"
        f" {num_fit} such workers."
    )
