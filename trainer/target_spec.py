"""TargetSpec: the label that the loss sees. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_pipeline.spec import Spec


class HardTarget(Spec):
    """The given label as it is."""

    kind: Literal["hard"] = "hard"


class SmoothedTarget(Spec):
    """Label smoothing (Szegedy et al. 2016): y' = (1 - rate) y + rate / K."""

    kind: Literal["smoothed"] = "smoothed"
    rate: float = Field(default=0.1, ge=0, lt=1)
    """Share of the label spread evenly over all K classes."""


TargetSpec = Annotated[HardTarget | SmoothedTarget, Field(discriminator="kind")]
