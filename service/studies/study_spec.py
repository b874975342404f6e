"""StudySpec: the only definition of a study, read by REST, client and command line alike."""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator
from pydantic_core import PydanticSerializationError

from data_pipeline.spec import Spec

MAX_JOBS = 1000
"""Jobs of one study."""

Point = dict[str, JsonValue]
"""Fields of a job by dotted path, with their values: `{"method.rho": 0.05, "target": {"kind": "hard"}}`."""

Values = Annotated[tuple[JsonValue, ...], Field(min_length=1)]
Grid = dict[str, Values]
"""Fields of a job by dotted path, each with the values it takes."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _shape(value: object) -> str:
    return "list" if isinstance(value, list | tuple) else "mapping"


class AshaSpec(Spec):
    """Asynchronous successive halving (Li et al. 2020): after `grace_epochs` epochs, and after each
    `reduction_factor` times as many, a job goes on only if it is among the best 1/`reduction_factor` of those that have
    come as far by then. All jobs must train on the same data, and the data must have a val split."""

    kind: Literal["asha"] = "asha"
    metric: Literal["accuracy", "nll"] = "accuracy"
    """What jobs are held against each other by, on val and by the weights (with a posterior: by its mean)."""
    grace_epochs: int = Field(default=1, ge=1, le=10_000)
    """No job is stopped before it has finished so many epochs."""
    reduction_factor: int = Field(default=4, ge=2, le=100)
    """One in so many jobs goes on."""
    brackets: int = Field(default=1, ge=1, le=8)
    """Jobs are dealt out in turn to so many brackets, and compete inside theirs; in each the first decision comes
    `reduction_factor` times later than in the one before. More than one guards against methods that start slowly."""


class StudySpec(Spec):
    """A study: a base job, and what is changed in it. One job for each point of the grid (or grids) and each of
    `points`, at each seed; the base itself where there is neither; at most 1,000.

    A point names fields of the job by dotted path: `method.rho`, or `method` as a whole. Choosing another `kind`
    (`method.kind: ivon`) drops the base's fields of the kind before.
    """

    api_version: Literal["hush/v1"] = "hush/v1"
    name: str = Field(min_length=1, max_length=190, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the study; its jobs are called `<name>-0`, `<name>-1`, … with as many digits as the last one needs."""
    base: dict[str, JsonValue]
    """A job as it would be submitted alone, less what the points say. Its name is not used."""
    grid: Annotated[
        Annotated[Grid, Tag("mapping")] | Annotated[tuple[Grid, ...], Tag("list")], Discriminator(_shape)
    ] = ()
    """Values for each field, e.g. `{"method.rho": [0, 0.05, 0.1]}`: a job for each combination, the last field varying
    fastest. A list of such grids gives the jobs of one after the other."""
    points: tuple[Point, ...] = Field(default=(), max_length=MAX_JOBS)
    """Points one by one, e.g. `{"method": {"kind": "ivon"}}`; their jobs come after the grid's."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_JOBS)] | None = None
    """Each point is trained once at each of these seeds; unset: once, at its own seed."""
    early_stop: AshaSpec | None = None
    """Stops jobs that do worse than others of the study; unset: each trains to its end."""

    @property
    def grids(self) -> tuple[Grid, ...]:
        """All grids that have fields, also where there is one or none."""
        return tuple(grid for grid in ((self.grid,) if isinstance(self.grid, dict) else self.grid) if grid)

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        try:
            text = json.dumps(self.model_dump(mode="json"), allow_nan=False)
            self.model_dump_json()
        except PydanticSerializationError:
            raise ValueError("holds a lone surrogate, which no text may") from None
        except ValueError:  # pydantic sees to it in Python's values, but not in JSON (1e999, NaN) below a JsonValue
            raise ValueError("holds a number that is not finite, which no field may") from None
        if "\\u0000" in text:
            raise ValueError("holds a NUL character, which no field may")
        return self
