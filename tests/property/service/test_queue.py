"""The queue, whoever waits: never more than there is or than a tenant may have, nobody overtaken, nobody starved."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.cluster.launcher import Node
from service.control.queue import Limits, plan_queue, refuse, why_never
from service.jobs.records import LiveJob, TenantLimits, WaitingJob
from service.jobs.states import JobState
from tests.unit.service.test_queue import running
from trainer.spec import ResourcesSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TENANTS = ("x", "y", "z")

RESOURCES = st.builds(
    ResourcesSpec,
    num_workers=st.integers(1, 4),
    gpus_per_worker=st.integers(0, 1),
    cpus_per_worker=st.sampled_from([0.5, 1, 2]),
)
NODES = st.lists(st.builds(Node, st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=3)
OWN = st.builds(TenantLimits, st.none() | st.integers(1, 4), st.none() | st.integers(1, 6))
LIMITS = st.builds(Limits, OWN, st.dictionaries(st.sampled_from(TENANTS), OWN))


@st.composite
def waiters(draw: st.DrawFn, max_size: int = 12) -> list[WaitingJob]:
    num = draw(st.integers(0, max_size))
    return [
        WaitingJob(
            id=f"{index:02}",
            tenant=draw(st.sampled_from(TENANTS)),
            state=draw(st.sampled_from([JobState.QUEUED, JobState.RECOVERING])),
            attempt=1,
            priority=draw(st.integers(-1, 1)),
            not_before=None,
            resources=draw(RESOURCES),
        )
        for index in range(num)
    ]


@dataclass
class Used:
    """What jobs take together."""

    jobs: int
    workers: int
    cpus: float
    gpus: float


def used(resources: Sequence[ResourcesSpec]) -> Used:
    return Used(
        jobs=len(resources),
        workers=sum(r.num_workers for r in resources),
        cpus=sum(r.num_workers * r.cpus_per_worker for r in resources),
        gpus=sum(r.num_workers * r.gpus_per_worker for r in resources),
    )


@given(waiting=waiters(), nodes=NODES, limits=LIMITS)
def test_never_more_than_there_is_or_a_tenant_may_have(
    waiting: list[WaitingJob], nodes: list[Node], limits: Limits
) -> None:
    starts = [job for job, _ in plan_queue(waiting, (), nodes, limits, NOW)]
    assert len({job.id for job in starts}) == len(starts)
    together = used([job.resources for job in starts])
    assert together.cpus <= sum(node.num_cpus for node in nodes) + 1e-6
    assert together.gpus <= sum(node.num_gpus for node in nodes)
    for tenant in TENANTS:
        share, limit = used([job.resources for job in starts if job.tenant == tenant]), limits.of(tenant)
        assert limit.max_running_jobs is None or share.jobs <= limit.max_running_jobs
        assert limit.max_workers is None or share.workers <= limit.max_workers


@given(waiting=waiters(), nodes=NODES, limits=LIMITS)
def test_nobody_behind_changes_whether_a_job_starts(
    waiting: list[WaitingJob], nodes: list[Node], limits: Limits
) -> None:
    """So priority and age are respected: those who come later, or matter less, take nothing from those before them."""
    starts = [job for job, _ in plan_queue(waiting, (), nodes, limits, NOW)]
    assert starts == sorted(starts, key=lambda job: (-job.priority, job.id))
    order = sorted(waiting, key=lambda job: (-job.priority, job.id))
    for num_first in range(len(order)):
        first = order[:num_first]
        without_the_rest = [job for job, _ in plan_queue(first, (), nodes, limits, NOW)]
        assert without_the_rest == [job for job in starts if job in first]


@given(waiting=waiters(), nodes=NODES, limits=LIMITS)
def test_whoever_waits_can_start_or_is_told_why_not(
    waiting: list[WaitingJob], nodes: list[Node], limits: Limits
) -> None:
    refused = {job.id for job, _ in refuse(waiting, nodes, limits)}
    for job in waiting:
        never = why_never(job.resources, nodes, limits.of(job.tenant)) is not None
        assert (job.id in refused) == (never and job.state is JobState.QUEUED)
        alone = plan_queue([job], (), nodes, limits, NOW)
        assert bool(alone) == (not never)


@given(first=RESOURCES, nodes=NODES, limits=LIMITS, stream=st.lists(st.tuples(st.sampled_from(TENANTS), RESOURCES)))
@settings(max_examples=200)
def test_nobody_starves(
    first: ResourcesSpec, nodes: list[Node], limits: Limits, stream: list[tuple[str, ResourcesSpec]]
) -> None:
    """While one job waits, others come without end, and what runs ends in the order it began. It gets its turn: once
    those have ended that ran when it came, its tenant's share is free, and once as many more have, its room is."""
    assume(why_never(first, nodes, limits.of("x")) is None)
    patient = WaitingJob("0000", "x", JobState.QUEUED, 1, 0, None, first)
    ids = (f"{number:04}" for number in itertools.count(1))

    def others() -> list[WaitingJob]:
        return [WaitingJob(next(ids), tenant, JobState.QUEUED, 1, 0, None, asked) for tenant, asked in stream]

    runs = [job for job, _ in plan_queue(others(), (), nodes, limits, NOW)]
    num_ended, most = 0, len(runs)
    while True:
        active = [as_live(job) for job in runs]
        starts = [job for job, _ in plan_queue([patient, *others()], active, nodes, limits, NOW)]
        if patient in starts:
            return
        runs += starts
        most = max(most, len(runs))
        del runs[0]
        num_ended += 1
        assert num_ended <= 2 * most, "it starves"


def as_live(job: WaitingJob) -> LiveJob:
    live = running(1, tenant=job.tenant)
    spec = live.job.spec.model_copy(update={"resources": job.resources})
    return LiveJob(replace(live.job, spec=spec), live.attempt)
