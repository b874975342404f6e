"""The headline figures of an evaluation: what is compared between jobs, without confusion and reliability."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from trainer.run_schema import LabelKind, Split


class Headline(BaseModel):
    """How well a split is predicted: the figures of an `Evaluation`, whose tables are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    labels: LabelKind
    accuracy: float
    nll: float
    brier: float
    ece: float


class Headlines(BaseModel):
    """The same of an `EvaluationReport`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    epoch: int
    splits: dict[Split, Headline]
    """By the weights."""
    averaged: dict[Split, Headline] = {}
    """Averaged over weight samples."""
