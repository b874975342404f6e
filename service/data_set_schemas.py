"""The bodies of /api/v1/data-sets."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from data_pipeline.spec import Corruption
from service.schemas import View

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class NewDataSet(View):
    """A data set to register."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "clothing1m", "manifest": "/data/clothing1m/manifest.json"}]},
    )

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    """A name of yours for it: letters, digits, `.`, `_` and `-`, at most 100 of them."""
    manifest: str = Field(min_length=1, max_length=2000)
    """Path or address of its `manifest.json`, where jobs may read; what a job says as `data.manifest`."""


class SplitView(View):
    """A split of a data set."""

    num_examples: int
    class_counts: tuple[int, ...]
    """Examples by given label."""
    num_clean_labels: int
    """Examples whose clean label is known."""
    num_shards: int
    size_bytes: int
    """Of its shards and their indexes."""


class DataSetSummary(View):
    """What a manifest says."""

    title: str
    """The name that the data set was built under."""
    digest: str
    """SHA-256 that names every byte of it."""
    classes: tuple[str, ...]
    num_examples: int
    num_skipped: int
    """Examples that the source listed and that could not be used."""
    corruption: Corruption | None
    """Label noise that was injected when it was built."""
    splits: dict[str, SplitView]


class ProblemView(View):
    """Something that is not as the manifest says."""

    file: str
    example_id: str | None
    """Null: it is the file as a whole."""
    reason: str


CheckStatus = Literal["running", "ok", "problems", "failed", "interrupted"]


class CheckView(View):
    """How a check of all files and examples went: sizes, checksums, places, labels."""

    status: CheckStatus
    """`failed`: it could not be done, see `error`. `interrupted`: the service ended first; ask again."""
    started_at: datetime
    updated_at: datetime
    """When it last went on, or ended."""
    num_checked: int = 0
    """Examples looked at so far."""
    num_problems: int = 0
    problems: tuple[ProblemView, ...] = ()
    """The first hundred."""
    error: str | None = None


class DataSetView(DataSetSummary):
    """A registered data set."""

    name: str
    manifest: str
    created_at: datetime
    check: CheckView | None = None
    """The last one; null before the first."""


class DataSetPage(View):
    """A page of data sets, newest first."""

    items: list[DataSetView]
    next_cursor: str | None = None
    """Pass as `cursor` for the next page; null on the last."""
