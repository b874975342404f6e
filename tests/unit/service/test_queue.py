"""Whose turn it is: by priority and age, within the cluster's room and the tenants' limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.cluster.launcher import Node
from service.control.machines import Machines
from service.control.queue import Limits, has_room, plan_queue, refuse, stranded
from service.jobs.ids import new_id
from service.jobs.records import AttemptRecord, JobRecord, LiveJob, TenantLimits, WaitingJob
from service.jobs.states import JobState, Reason
from trainer.spec import JobSpec, ResourcesSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NO_LIMITS = Limits(TenantLimits())


def asking(
    identity: str,
    num_workers: int,
    *,
    tenant: str = "default",
    priority: int = 0,
    state: JobState = JobState.QUEUED,
    not_before: datetime | None = None,
    **resources: Any,
) -> WaitingJob:
    asked = ResourcesSpec(num_workers=num_workers, **resources)
    return WaitingJob(identity, tenant, state, 1, priority, not_before, asked)


def running(num_workers: int, *, tenant: str = "default", state: JobState = JobState.RUNNING, gpus: int = 0) -> LiveJob:
    resources = {"num_workers": num_workers, "gpus_per_worker": gpus}
    data = {"manifest": "/m", "batch_size": num_workers}
    job = JobRecord(
        id="0" * 26,
        tenant=tenant,
        spec=JobSpec.model_validate({"name": "job", "data": data, "resources": resources}),
        state=state,
        state_since=NOW,
        reason=Reason.SUBMITTED,
        message=None,
        attempt=1,
        num_failures=0,
        progress=None,
        mlflow_run_id=None,
        mlflow_experiment_id=None,
        created_at=NOW,
        updated_at=NOW,
        started_at=None,
        ended_at=None,
    )
    return LiveJob(job, AttemptRecord(job.id, 1, "hash", NOW, NOW, NOW))


def started(
    waiting: list[WaitingJob], *nodes: Node, active: tuple[LiveJob, ...] = (), limits: Limits = NO_LIMITS
) -> str:
    """Ids of the jobs that start, in order."""
    return "".join(job.id for job, _ in plan_queue(waiting, active, nodes, limits, NOW))


def test_the_oldest_that_fit_start() -> None:
    assert started([asking(name, 2) for name in "cab"], Node(4, 0)) == "ab"


def test_a_full_cluster_has_no_room() -> None:
    assert has_room((running(1),), [Node(1, 0), Node(0.5, 0)])
    assert not has_room((running(1), running(1)), [Node(1, 0), Node(1, 4)])
    assert not has_room((), [])


def test_priority_goes_before_age() -> None:
    jobs = [asking("a", 2), asking("b", 2, priority=1), asking("c", 2, priority=-1), asking("d", 2, priority=1)]
    assert started(jobs, Node(6, 0)) == "bda"


@pytest.mark.parametrize("state", [JobState.STARTING, JobState.RUNNING, JobState.CANCELLING])
def test_what_runs_takes_its_room(state: JobState) -> None:
    assert started([asking("b", 1)], Node(2, 0), active=(running(2, state=state),)) == ""


def test_a_job_that_recovers_keeps_its_place() -> None:
    jobs = [asking("a", 2), asking("b", 2, state=JobState.RECOVERING), asking("c", 2)]
    assert started(jobs, Node(2, 0)) == "a"
    assert started(jobs[1:], Node(2, 0)) == "b"
    [(_, move)] = plan_queue(jobs[1:2], (), [Node(2, 0)], NO_LIMITS, NOW)
    assert (move.new, move.reason) == (JobState.STARTING, Reason.NEW_ATTEMPT)


def test_a_job_that_recovers_waits_its_time_and_takes_no_room_until_then() -> None:
    jobs = [asking("a", 2, state=JobState.RECOVERING, not_before=NOW + timedelta(seconds=1)), asking("b", 2)]
    assert started(jobs, Node(2, 0)) == "b"
    jobs[0] = asking("a", 2, state=JobState.RECOVERING, not_before=NOW)
    assert started(jobs, Node(2, 0)) == "a"


def test_who_waits_keeps_its_place() -> None:
    assert started([asking("b", 2), asking("c", 1)], Node(2, 0), active=(running(1),)) == ""


def test_who_waits_for_a_gpu_leaves_the_spare_cpus() -> None:
    jobs = [asking("b", 1, gpus_per_worker=1), asking("c", 1)]
    assert started(jobs, Node(4, 1), active=(running(1, gpus=1),)) == "c"


def test_a_tenant_at_its_limit_does_not_keep_others_waiting() -> None:
    limits = Limits(TenantLimits(max_running_jobs=1))
    jobs = [asking("b", 1, tenant="x"), asking("c", 1, tenant="y"), asking("d", 1, tenant="y")]
    assert started(jobs, Node(3, 0), active=(running(1, tenant="x"),), limits=limits) == "c"


def test_a_tenants_own_limit_goes_before_the_default() -> None:
    limits = Limits(TenantLimits(1, 3), {"x": TenantLimits(max_running_jobs=2), "y": TenantLimits(max_workers=1)})
    jobs = [asking(name, 1, tenant="x") for name in "abc"] + [asking(name, 1, tenant="y") for name in "de"]
    assert started(jobs, Node(9, 0), limits=limits) == "abd"


def test_within_a_tenants_share_too_who_waits_keeps_its_place() -> None:
    limits = Limits(TenantLimits(max_workers=4))
    jobs = [asking("b", 4, tenant="x"), asking("c", 1, tenant="x"), asking("d", 1, tenant="y")]
    assert started(jobs, Node(9, 0), active=(running(1, tenant="x"),), limits=limits) == "d"


def test_a_worker_does_not_span_machines() -> None:
    wide = asking("a", 1, cpus_per_worker=3)
    [(_, move)] = refuse([wide], [Node(2, 0), Node(2, 0)], NO_LIMITS)
    assert (move.new, move.reason) == (JobState.FAILED, Reason.NEVER_FITS)
    assert "cpus_per_worker 3" in (move.message or "")
    assert started([wide], Node(2, 0), Node(2, 0)) == ""
    assert refuse([wide], [Node(2, 0), Node(3, 0)], NO_LIMITS) == []
    assert started([wide], Node(2, 0), Node(3, 0)) == "a"


def test_what_never_fits_keeps_nobody_waiting() -> None:
    assert started([asking("a", 9), asking("b", 2)], Node(2, 0)) == "b"


def test_gpus_that_are_not_there() -> None:
    [(_, move)] = refuse([asking("a", 1, gpus_per_worker=1)], [Node(8, 0)], NO_LIMITS)
    assert move.reason is Reason.NEVER_FITS


def test_more_workers_than_its_tenant_may_have() -> None:
    limits = Limits(TenantLimits(), {"x": TenantLimits(max_workers=2)})
    [(job, move)] = refuse([asking("a", 3, tenant="x"), asking("b", 3, tenant="y")], [Node(8, 0)], limits)
    assert (job.id, move.new, move.reason) == ("a", JobState.FAILED, Reason.NEVER_FITS)
    assert "num_workers 3" in (move.message or "")
    assert "2 workers" in (move.message or "")


def test_a_job_that_recovers_waits_for_the_cluster_to_come_back() -> None:
    recovers = [asking("a", 4, state=JobState.RECOVERING), asking("b", 1, state=JobState.RECOVERING)]
    assert refuse(recovers, [Node(2, 0)], NO_LIMITS) == []
    assert started(recovers, Node(2, 0)) == "b"


def test_jobs_that_recover_and_have_no_place() -> None:
    recovers = [asking("a", 4, state=JobState.RECOVERING), asking("b", 1, state=JobState.RECOVERING)]
    found = stranded(recovers, [Node(2, 0)], NO_LIMITS)
    assert {job: (move.new, move.reason) for job, move in found.items()} == {"a": (JobState.FAILED, Reason.NEVER_FITS)}
    assert "no machine" in (stranded(recovers, [], NO_LIMITS)["b"].message or "")
    lowered = Limits(TenantLimits(max_workers=3))
    assert "3 workers" in (stranded(recovers, [Node(4, 0)], lowered)["a"].message or "")
    assert stranded(recovers, [Node(4, 0)], NO_LIMITS) == {}
    away = stranded(recovers, None, NO_LIMITS)
    assert {job: move.reason for job, move in away.items()} == dict.fromkeys("ab", Reason.HEAD_LOST)


def test_a_head_without_machines_decides_nothing() -> None:
    assert refuse([asking("a", 1)], [], NO_LIMITS) == []
    assert started([asking("a", 1)]) == ""


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_a_machine_that_is_missed_is_waited_for() -> None:
    machines = Machines()

    def judged_from(seconds: float, *nodes: Node) -> str:
        return machines.judged_from(nodes, NOW, at(seconds), patience_s=10)

    two = (Node(1, 0), Node(2, 0))
    assert judged_from(1, *two) == new_id(NOW, 0), "what was before nobody knows"
    assert judged_from(11, *reversed(two)) == "", "the same machines, for long"
    assert judged_from(12, Node(1, 0)) == new_id(at(11), 0)
    assert judged_from(21, Node(1, 0)) == new_id(at(11), 0)
    assert judged_from(22, Node(1, 0)) == ""
    assert judged_from(99, *two) == "", "it changed after 22, and nobody waited then"
    machines.out_of_sight(at(200))
    assert judged_from(201, Node(1, 0)) == new_id(at(200), 0), "it comes back one by one"


def test_a_job_is_stranded_for_as_long_as_each_look_says_so() -> None:
    machines = Machines()

    def late(seconds: float, *jobs: str, since: datetime = NOW) -> list[str]:
        return machines.stranded_for(jobs, since, at(seconds), patience_s=10)

    assert late(0, "a") == []
    assert late(5, "a", "b") == []
    assert late(11, "a", "b") == ["a"]
    assert late(12, "b") == []
    assert late(13, "a", "b") == [], "it had a place in between"
    assert late(16, "a", "b", since=at(15)) == [], "what was before we looked nobody knows"
    assert late(25, "a", "b", since=at(15)) == []
    assert late(26, "a", "b", since=at(15)) == ["a", "b"]
