"""Bodies of the API that tell of a job's results: metrics, examples, the model. For routes and client alike."""

from __future__ import annotations

from typing import Literal

from service.schemas import View


class MetricPoint(View):
    """One value of a metric."""

    step: int
    epoch: int
    time_ms: int
    value: float


class MetricSeries(View):
    """The values of one metric, by step."""

    name: str
    points: list[MetricPoint]


class MetricsView(View):
    """All metrics of a job."""

    series: list[MetricSeries]


class ExampleView(View):
    """A tracked example after an epoch; the columns are trainer.run_schema.EXAMPLE_COLUMNS.

    Figures of this epoch are null where the epoch could not read the example.
    """

    example_id: str
    shard: str
    given_label: int
    clean_label: int | None
    predicted_label: int | None
    p_given: float | None
    loss: float | None
    margin: float | None
    entropy: float | None
    epsilon_exact: float | None
    epsilon_exact_given: float | None
    epsilon_linearised: float | None
    epsilon_training: float | None
    num_records: int
    aum: float | None
    confidence: float | None
    variability: float | None
    forgetting_events: int
    suspicion: float | None
    ambiguity: float | None
    given_class: str
    clean_class: str | None
    predicted_class: str | None


class ExampleEpoch(ExampleView):
    """A tracked example after one of the epochs."""

    epoch: int


class ExampleLinks(View):
    """Where to see it."""

    self: str
    image: str
    """The picture itself."""


class ExampleHistory(View):
    """A tracked example after each epoch that was recorded, the first one first."""

    example_id: str
    history: list[ExampleEpoch]
    links: ExampleLinks


class ModelLinks(View):
    """Where to fetch it."""

    weights: str


class ModelView(View):
    """Where a job's model is: a state dict of the trained weights, with IVON the posterior mean."""

    attempt: int
    arch: str
    classes: list[str]
    """By label."""
    epoch: int
    """After so many epochs."""
    path: str
    """On the storage that service and cluster share."""
    size_bytes: int
    sha256: str | None
    """As the attempt's result has it; null until that is published."""
    mlflow_uri: str | None
    """As `mlflow.artifacts.download_artifacts` takes it; null without MLflow."""
    checkpoint: str | None
    """The newest checkpoint, from which a retry would go on; null where there is none."""
    links: ModelLinks


ExampleSort = Literal["suspicion", "ambiguity", "loss", "margin", "entropy", "aum", "confidence", "variability"]
"""Columns that examples are sorted by, largest first unless `order=asc`."""


class ExamplePage(View):
    """Tracked examples of a job, sorted."""

    epoch: int
    total: int
    """Examples that match the filter."""
    items: list[ExampleView]
    next_cursor: str | None = None
