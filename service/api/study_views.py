"""Records of studies -> bodies of the REST API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from service.api.views import job_path, study_path
from service.jobs.states import JobState
from service.schemas import API
from service.studies.expansion import points_of
from service.studies.records import StudyHead, StudyJob, StudyRecord
from service.studies.states import JobCounts, num_early_stopped, study_state
from service.study_schemas import StudyJobView, StudyLinks, StudySummary, StudyView


def study_summary(study: StudyHead, counts: JobCounts) -> StudySummary:
    """A study as a page of them shows it."""
    by_state: Counter[JobState] = Counter()
    for (state, _), num in counts.items():
        by_state[state] += num
    path = study_path(study.id)
    return StudySummary(
        id=study.id,
        name=study.name,
        state=study_state(counts, cancelled=study.cancelled_at is not None),
        num_jobs=by_state.total(),
        jobs_by_state={state: by_state[state] for state in JobState if by_state[state]},
        num_early_stopped=num_early_stopped(counts),
        created_at=study.created_at,
        cancelled_at=study.cancelled_at,
        links=StudyLinks(self=path, jobs=f"{API}/jobs?study={study.id}", comparison=f"{path}/comparison"),
    )


def study_view(study: StudyRecord, jobs: Sequence[StudyJob]) -> StudyView:
    """A study with its jobs, as the API shows it."""
    points = list(points_of(study.spec))
    summary = study_summary(study, Counter((job.state, job.reason) for job in jobs))
    views = [_job_view(job, points[job.index]) for job in jobs]
    return StudyView(**dict(summary), spec=study.spec, jobs=views)


def _job_view(job: StudyJob, point: Mapping[str, JsonValue]) -> StudyJobView:
    return StudyJobView(
        id=job.id,
        index=job.index,
        name=job.name,
        point=dict(point),
        method=job.method,
        state=job.state,
        reason=job.reason,
        message=job.message,
        progress=job.progress,
        self=job_path(job.id),
    )
