"""The bodies of the REST API that are about studies."""

from __future__ import annotations

from datetime import datetime

from pydantic import JsonValue

from data_pipeline.spec import Corruption
from service.jobs.states import JobState, Reason
from service.schemas import View
from service.studies.states import StudyState
from service.studies.study_spec import StudySpec
from trainer.run_schema import LabelKind, Progress


class StudyLinks(View):
    """Where to read on."""

    self: str
    jobs: str
    """All its jobs, as a page of full ones: also those that were retried, whose places others have taken."""
    comparison: str


class StudySummary(View):
    """A study as a page of them shows it."""

    id: str
    name: str
    state: StudyState
    num_jobs: int
    jobs_by_state: dict[JobState, int]
    """Number of jobs in each state that some are in."""
    num_early_stopped: int
    """Of those that are CANCELLED, how many early stopping has ended."""
    created_at: datetime
    cancelled_at: datetime | None = None
    links: StudyLinks


class StudyJobView(View):
    """A job of a study."""

    id: str
    index: int
    """Its place in the study, from 0."""
    name: str
    point: dict[str, JsonValue]
    """What it changes in the base, by dotted path."""
    method: str
    state: JobState
    reason: Reason
    message: str | None = None
    progress: Progress | None = None
    self: str
    """Where the whole job is."""


class StudyView(StudySummary):
    """A study with its jobs."""

    spec: StudySpec
    jobs: list[StudyJobView]
    """In the study's order."""


class StudyPage(View):
    """A page of studies, newest first."""

    items: list[StudySummary]
    next_cursor: str | None = None
    """Pass as `cursor` for the next page; null on the last."""


class Spread(View):
    """A figure over the seeds of a point."""

    num_seeds: int
    """Jobs that have this figure by now."""
    median: float
    min: float
    max: float
    q1: float
    """First quartile, interpolated linearly; q3 - q1 is the interquartile range."""
    q3: float


class FigureSpreads(View):
    """How well a split is predicted, over the seeds of a point."""

    accuracy: Spread
    nll: Spread
    """Mean negative log likelihood, in nats."""
    brier: Spread
    ece: Spread
    """Expected calibration error."""


class SplitComparison(View):
    """A split, predicted by the weights and averaged over weight samples."""

    labels: LabelKind
    """What the predictions were compared with: clean labels where all are known."""
    mean: FigureSpreads
    """By the weights; for a method with a posterior by its mean."""
    averaged: FigureSpreads | None = None
    """By the average over weight samples; null without a posterior, or where it was not due."""


class PointComparison(View):
    """A point of a study: its jobs, which differ by their seeds alone, and what came out of them."""

    point: dict[str, JsonValue]
    """What it changes in the base, but for the seed."""
    manifest: str
    corruption: Corruption | None
    method: str
    target: str
    """Kind of the target, e.g. `smoothed`."""
    job_ids: list[str]
    num_jobs: int
    num_succeeded: int
    num_failed: int
    """Failed jobs tell nothing here: their figures are left out."""
    num_cancelled: int
    """By hand, with their study, or early; but for those stopped early, their figures are left out."""
    num_early_stopped: int
    """Of num_cancelled; compared by what they had."""
    num_live: int
    """Jobs that have not ended: compared by what they have so far."""
    epochs: tuple[int, int] | None
    """The fewest and the most epochs after which a job's figures were taken; null without any."""
    val: SplitComparison | None
    """Null while no job has been evaluated on val."""
    test: SplitComparison | None
    """Null while none has been evaluated on test, which comes after the last epoch."""


class StudyComparison(View):
    """The points of a study, compared. Each job counts by its last evaluated epoch, never by the best one."""

    study_id: str
    is_final: bool
    """Whether all jobs have ended."""
    best: list[PointComparison]
    """For each data set, method and kind of target its point of the highest median accuracy on val, by the weights; of
    equal ones, that of the lower median nll, then the first. Best first. Test decides nothing."""
    points: list[PointComparison]
    """All points, in the study's order."""
