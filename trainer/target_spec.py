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


class OnlineTarget(Spec):
    """Online label smoothing (Zhang et al. 2021): each class has a soft label of its own, the mean prediction for those
    of its examples that the epoch before predicted as labelled."""

    kind: Literal["online"] = "online"
    hard_weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of the given label in the loss; the soft label has the rest. 1 is `hard`."""
    initial_rate: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing at this rate stands in until a class has a soft label: in the first epoch for all of them."""


class ACLSTarget(Spec):
    """Adaptive and conditional label smoothing (Park et al. 2023): cross-entropy, and a penalty on logits z that are
    far apart, lambda1 relu(max z - margin)² + lambda2 mean_k relu(max z - z_k - margin)², k over the classes that are
    not predicted. The defaults are the authors'."""

    kind: Literal["acls"] = "acls"
    lambda1: float = Field(default=0.1, ge=0)
    """Weight of the penalty on the largest logit."""
    lambda2: float = Field(default=0.01, ge=0)
    """Weight of the penalty on the others' distance to it."""
    margin: float = Field(default=10.0, ge=0)
    """Logits, and distances between them, are free up to here."""


class EntropyTarget(Spec):
    """Label smoothing at a rate for each example, 1 - H(p) / log K with the entropy H of its prediction p: the surer
    the prediction, the smoother the label (Lee et al. 2022, with the uniform prior in place of an earlier model's)."""

    kind: Literal["entropy"] = "entropy"


TargetSpec = Annotated[
    HardTarget | SmoothedTarget | OnlineTarget | ACLSTarget | EntropyTarget, Field(discriminator="kind")
]
