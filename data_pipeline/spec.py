"""DataSpec: which data a job trains on, and how its pictures become batches."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Base of what a user writes: immutable, finite, no unknown fields; a docstring under a field documents it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class SymmetricCorruption(Spec):
    """A label becomes any *other* class with probability `rate`, each equally likely."""

    kind: Literal["symmetric"] = "symmetric"
    rate: float = Field(gt=0, lt=1)
    """Share of labels to replace, in (0, 1)."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the one `numpy.random.RandomState` that draws all labels, in data-set order."""


class PairflipCorruption(Spec):
    """A label becomes the *next* class (the last becomes the first) with probability `rate`."""

    kind: Literal["pairflip"] = "pairflip"
    rate: float = Field(gt=0, lt=1)
    """Share of labels to replace, in (0, 1)."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the one `numpy.random.RandomState` that draws all labels, in data-set order."""


class ClassDependentCorruption(Spec):
    """A label of class i (1 to K, in label order) becomes any *other* class with probability `k + beta * i`, each
    equally likely: some classes are noisier than others. `k + beta * K` must be below 1."""

    kind: Literal["class_dependent"] = "class_dependent"
    k: float = Field(ge=0, lt=1)
    """Noise level that the classes start from, in [0, 1)."""
    beta: float = Field(gt=0, lt=1)
    """What each class adds to the level of the one before, in (0, 1)."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the one `numpy.random.RandomState` that draws all labels, in data-set order."""


Corruption = Annotated[SymmetricCorruption | PairflipCorruption | ClassDependentCorruption, Field(discriminator="kind")]


Order = Literal["global", "windowed"]
Remainder = Literal["pad", "drop"]


class DataSpec(Spec):
    """The data of a job: a manifest made by `hush data build`, and how its pictures become batches."""

    manifest: str = Field(min_length=1, max_length=4096)
    """Path of the data set's `manifest.json`, or its address: s3:// or http(s)://."""
    corruption: Corruption | None = None
    """Label noise injected into the training split at load; the clean label is kept for evaluation only."""
    image_size: int = Field(default=224, ge=8, le=1024)
    """Height and width of the model's input, in pixels."""
    batch_size: int = Field(default=256, ge=1, le=65536)
    """Examples a step over *all* ranks; must be a multiple of `resources.num_workers`."""
    order: Order = "global"
    """How an epoch is shuffled. `global`: one permutation of all examples. `windowed`: shards are shuffled, and
    examples within `window_shards` of them: for data that is fetched over a network, a shard at a time."""
    window_shards: int = Field(default=64, ge=1, le=4096)
    """Shards that a `windowed` order mixes at a time, over all ranks; no effect on `global`."""
    class_balanced: bool = False
    """Each epoch draws, anew and at random, as many training examples of each given label as the rarest label has."""
    remainder: Remainder = "pad"
    """A training epoch's last examples where they make no whole batch. `pad`: a last, shorter step, so that each
    example is seen exactly once. `drop`: left out, others each epoch, so that all steps are of one size."""
    augmentation: Literal["crop_flip", "none"] = "crop_flip"
    """`crop_flip`: random resized crop and horizontal flip in training, centre crop in evaluation; `none`: the whole
    picture, resized, in both (digits, text)."""
    num_threads: int = Field(default=2, ge=1, le=128)
    """Threads a rank that read and decode."""
    decode_on: Literal["cpu", "cuda"] = "cpu"
    """Where JPEGs are decoded. `cuda`: by nvJPEG, on the GPU that trains, for machines whose CPUs can't keep up."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unreadable examples that are counted, listed and skipped; past it the job fails."""


def num_tolerated(max_bad_fraction: float, num_examples: int) -> int:
    """How many of so many examples may be unreadable."""
    return int(Decimal(str(max_bad_fraction)) * num_examples)  # as it was written: in floats 0.29 of 100 is 28
