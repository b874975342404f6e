"""JobSpec: the only definition of a job, read by REST, CLI, trainer and tests alike. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from data_pipeline.spec import DataSpec, Spec
from trainer.method_spec import IVONSpec, MethodSpec
from trainer.target_spec import HardTarget, TargetSpec


class ModelSpec(Spec):
    """The network."""

    arch: Literal["resnet18", "resnet34", "resnet50", "small_cnn"] = "resnet50"
    """torchvision's ResNets, or `small_cnn` (three convolutions) for small pictures such as digits."""
    weights: str = Field(default="none", max_length=4096)
    """`none` (random), `imagenet` (torchvision's, downloaded once), or the path of a saved state dict."""

    @model_validator(mode="after")
    def _weights_exist_for_arch(self) -> Self:
        if self.arch == "small_cnn" and self.weights == "imagenet":
            raise ValueError("weights 'imagenet' exist for the ResNets only; small_cnn allows 'none' or a path")
        return self


class ScheduleSpec(Spec):
    """How long to train, and how the learning rate moves."""

    epochs: int = Field(default=10, ge=1, le=10_000)
    """Passes over the training split."""
    warmup_epochs: float = Field(default=0, ge=0)
    """Epochs over which the learning rate rises linearly from 0."""
    decay: Literal["cosine", "step"] = "cosine"
    """`cosine` to zero, or `step`: a tenth after each of `milestones`."""
    milestones: tuple[int, ...] = ()
    """Epochs after which `step` divides the learning rate by ten."""
    max_steps_per_epoch: int | None = Field(default=None, ge=1)
    """Cut each epoch after this many steps (for trying things out); unset: the whole split."""

    @model_validator(mode="after")
    def _fits_epochs(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be less than epochs {self.epochs}")
        if self.milestones and self.decay != "step":
            raise ValueError("milestones belong to decay: step")
        if list(self.milestones) != sorted(set(self.milestones)) or any(
            not 0 < m < self.epochs for m in self.milestones
        ):
            raise ValueError(
                f"milestones {list(self.milestones)} must rise and lie between 1 and epochs - 1 = {self.epochs - 1}"
            )
        return self


class LabelNoiseSpec(Spec):
    """What is recorded of the label noise ε: on which examples, how often, by which estimator."""

    every_epochs: int = Field(default=1, ge=1)
    """Record after every n-th epoch (and after the last)."""
    estimator: Literal["exact", "linearised", "both"] = "both"
    """`exact`: softmax(f_m) - E_q[softmax(f_θ)] (Eq. 16); `linearised`: Eq. 20. They measure different things."""
    num_mc_samples: int = Field(default=8, ge=2, le=1024)
    """Weight samples an estimate, drawn in antithetic pairs: even. Each is a forward pass over the tracked examples:
    with 8, recording 2% of the examples costs less than a twentieth of an epoch's training."""
    linearised_by: Literal["antithetic", "jvp"] = "antithetic"
    """How Eq. 20 is computed. `antithetic`: half the difference of a pair's predictions, exact up to O(σ³), from passes
    that `exact` makes too; `jvp`: as it is written, by forward-mode differentiation along each pair's direction, which
    takes four to eight passes more a pair."""
    num_examples: int | Literal["all"] = 20_000
    """Tracked examples: a seeded random subset of the training split of this size, or `all`."""

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if self.num_mc_samples % 2:
            raise ValueError(f"num_mc_samples {self.num_mc_samples} is odd; samples come in pairs, so it must be even")
        if isinstance(self.num_examples, int) and self.num_examples < 1:
            raise ValueError(f"num_examples {self.num_examples} must be at least 1, or 'all'")
        return self


class EvaluationSpec(Spec):
    """How val and test are predicted: always by the weights (for a method with a posterior its mean), and for such a
    method also by the average over weight samples, when that is due."""

    num_mc_samples: int = Field(default=16, ge=0, le=1024)
    """Weight samples whose softmax is averaged; 0: none. Each costs a forward pass over val and test."""
    average_every_epochs: int | None = Field(default=None, ge=1)
    """Average after every n-th epoch, and after the last; unset: after the last only."""
    reestimate_batchnorm: bool = True
    """Estimate BatchNorm's running statistics anew at the posterior mean before evaluating: training collects them at
    weight samples. Networks without BatchNorm and methods without a posterior need none. The averaged prediction uses
    the same statistics."""


class ResourcesSpec(Spec):
    """What the job asks of the cluster. One worker is one DDP rank."""

    num_workers: int = Field(default=1, ge=1, le=4096)
    """DDP ranks."""
    gpus_per_worker: int = Field(default=0, ge=0, le=1)
    """GPUs a rank: 0 (CPU, gloo) or 1 (NCCL)."""
    cpus_per_worker: float = Field(default=1, gt=0, le=256)
    """CPUs a rank, as the cluster's scheduler counts them."""


class FaultToleranceSpec(Spec):
    """What happens when something breaks."""

    max_failures: int = Field(default=3, ge=0, le=100)
    """Attempts after the first, each from the last checkpoint, before the job is FAILED: an attempt that is lost counts
    once, whatever broke. Within each, Ray Train starts workers that died again up to as many times, uncounted."""
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Checkpoint inside an epoch every n steps; unset: at the end of each epoch only."""


class SchedulingSpec(Spec):
    """When the job gets its turn."""

    priority: int = Field(default=0, ge=-100, le=100)
    """Waiting jobs of higher priority start first; equal ones in the order they came."""
    deadline_s: float | None = Field(default=None, gt=0, le=366 * 86_400)
    """Seconds from its submission after which a job that has not ended is stopped, and FAILED; unset: none."""


class JobSpec(Spec):
    """A training job: data, model, method, target, schedule, and what to record."""

    api_version: Literal["hush/v1"] = "hush/v1"
    name: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the job, and of its MLflow run: letters, digits, dot, dash and underscore."""
    data: DataSpec
    model: ModelSpec = ModelSpec()
    method: MethodSpec = Field(default_factory=IVONSpec)
    target: TargetSpec = Field(default_factory=HardTarget)
    schedule: ScheduleSpec = ScheduleSpec()
    label_noise: LabelNoiseSpec = LabelNoiseSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    resources: ResourcesSpec = ResourcesSpec()
    fault_tolerance: FaultToleranceSpec = FaultToleranceSpec()
    scheduling: SchedulingSpec = SchedulingSpec()
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast of forward and backward; weights and optimizer stay float32."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seeds weights, order, augmentation and noise: the same spec and world size gives the same run."""

    @model_validator(mode="after")
    def _decodes_where_it_can(self) -> Self:
        if self.data.decode_on == "cuda" and not self.resources.gpus_per_worker:
            raise ValueError("data.decode_on 'cuda' needs resources.gpus_per_worker 1; it is 0")
        return self

    @model_validator(mode="after")
    def _batch_splits_over_ranks(self) -> Self:
        if self.data.batch_size % self.resources.num_workers:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} is the global batch and must be a multiple of"
                f" resources.num_workers {self.resources.num_workers}"
            )
        return self
