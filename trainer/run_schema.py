"""What a run leaves behind: names of metrics and files, and the shape of each. Imports no torch.

An attempt writes everything into its own folder, which is the truth; MLflow gets a copy for people to look at, replayed
from the journal, so that MLflow being away loses nothing. The service reads the folder. When attempt n+1 resumes, it
first links the finished epochs of attempt n into its own folder: the newest attempt's folder is complete by itself.

    attempt.json                    AttemptContext, written by whoever starts the attempt (mode 0600: it holds a token)
    journal.jsonl                   JournalEntry a line, appended by rank 0
    checkpoints/                    see trainer.checkpoint
    label_noise/epoch_0007.json     LabelNoiseRecord;  epoch_0007.png: the same as a picture
    examples/epoch_0007.parquet     a row for each tracked example: EXAMPLE_COLUMNS
    evaluation/epoch_0007.json      EvaluationReport
    quarantine.jsonl                one line for each unreadable example
    logs/rank_0000.log              what a rank wrote on stdout and stderr; logs/driver.log: what the driver did
    failure.json                    AttemptFailure, where the attempt failed
    model.pt                        state dict of the trained model (IVON: the posterior mean)
    result.json                     AttemptResult, written last: without it the attempt has not succeeded

Epochs count from 1: epoch 7's files describe the model after seven passes over the data.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer.spec import JobSpec

ATTEMPT_FILE = "attempt.json"
JOURNAL_FILE = "journal.jsonl"
CHECKPOINTS_DIR = "checkpoints"
LABEL_NOISE_DIR = "label_noise"
EXAMPLES_DIR = "examples"
EVALUATION_DIR = "evaluation"
QUARANTINE_FILE = "quarantine.jsonl"
LOGS_DIR = "logs"
FAILURE_FILE = "failure.json"
MODEL_FILE = "model.pt"
RESULT_FILE = "result.json"
TIMELINE_FILE = "timeline.jsonl"
"""When a start reached which moment, see trainer.timeline."""
HANDOVER_FILE = "handover.json"
"""In the folder of a spare, see trainer.handover."""

NonNegativeInt = Annotated[int, Field(ge=0)]


def epoch_file(folder: str, epoch: int, suffix: str) -> str:
    """Path of an epoch's file inside the attempt's folder, e.g. `label_noise/epoch_0007.json`."""
    return f"{folder}/epoch_{epoch:04d}.{suffix}"


class Schema(BaseModel):
    """Base of everything a run writes: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# ---------------------------------------------------------------------------------------------------------- starting


class AttemptContext(Schema):
    """All that a run needs to start: the whole input of `trainer.loop.train` besides the process group."""

    job_id: str
    attempt: int = Field(ge=1)
    spec: JobSpec
    run_dir: str
    """Folder of this attempt; everything it writes goes there."""
    resume_dirs: tuple[str, ...] = ()
    """Folders of earlier attempts, newest first; training continues from the newest good checkpoint in them."""
    heartbeat_url: str | None = None
    """Where rank 0 posts Heartbeats; unset when the trainer runs alone."""
    heartbeat_token: str | None = Field(default=None, repr=False)
    """Bearer token of this attempt: only the current attempt may publish."""
    mlflow_uri: str | None = None
    """MLflow tracking server; unset: nothing is replicated."""
    mlflow_run_id: str | None = None
    """MLflow run of an earlier attempt, to be continued."""


class Handover(Schema):
    """Service -> a spare driver that waits: the attempt it is to run. Or the spare's own word that it takes none."""

    attempt_dir: str | None
    """Folder with the attempt's attempt.json; null: end, there will be none."""
    is_declined: bool = False
    """Written by the spare itself, which has failed while it waited."""


# ------------------------------------------------------------------------------------------------------------ running


class Progress(Schema):
    """Where a run stands now."""

    phase: Literal["starting", "training", "evaluating", "recording", "finishing"]
    epoch: NonNegativeInt
    """The epoch under way, from 1; 0 before the first."""
    num_epochs: int
    step: NonNegativeInt
    """Optimizer steps done since the job began."""
    num_steps: NonNegativeInt
    """Optimizer steps of the whole job."""
    images_per_s: float | None = None
    """Training throughput over all ranks."""
    eta_s: float | None = None
    """Estimated seconds until the end."""
    loss: float | None = None
    """Mean training loss since the last report."""


class EpochSummary(Schema):
    """The headline figures of a finished epoch."""

    epoch: int = Field(ge=1, lt=2**31)
    metrics: dict[str, float]
    """By metric name, see METRICS."""


MlflowId = Annotated[str, Field(pattern=r"^[!-~]{1,64}$")]
"""An id that MLflow gave a run or an experiment, as the service's database can hold it."""


class Heartbeat(Schema):
    """Rank 0 -> service, about once a second."""

    progress: Progress
    finished_epochs: tuple[EpochSummary, ...] = ()
    """Epochs finished since the last acknowledged heartbeat."""
    mlflow_run_id: MlflowId | None = None
    mlflow_experiment_id: MlflowId | None = None


PROBLEM_JSON = "application/problem+json"
"""What the service's errors are (RFC 9457), and those of what may stand before it are not."""


class HeartbeatReply(Schema):
    """Service -> rank 0: go on, or end at the next step."""

    action: Literal["continue", "stop", "abort"]
    """`stop`: write a last checkpoint and what a finished run leaves; `abort`: end at once, without."""


FailureReason = Literal[
    "spec_rejected", "data_quarantine_limit", "data_unavailable", "non_finite_loss", "out_of_memory", "worker_lost",
    "attempt_failed",
]  # fmt: skip
"""Why an attempt failed: the spec cannot be trained here; too many unreadable examples; the storage does not answer;
training diverged; no memory was left; a rank died; anything else."""


class AttemptFailure(Schema):
    """Why an attempt failed, as the rank that failed first tells it, or the driver where a rank died speechless."""

    reason: FailureReason
    message: str
    """One line for people."""
    traceback: str = ""
    """The last lines of the failing rank's traceback."""
    rank: NonNegativeInt | None = None
    """The rank that failed; null where it was the driver."""
    is_final: bool
    """Whether another attempt would end the same way."""


class JournalEntry(Schema):
    """One line of journal.jsonl: metrics at a step, or a file that was published."""

    time_ms: int
    """Unix time in milliseconds."""
    step: NonNegativeInt
    epoch: NonNegativeInt
    metrics: dict[str, float] = {}
    file: str | None = None
    """Path inside the attempt's folder."""


# ------------------------------------------------------------------------------------------------------------ results

METRICS = {
    "train/loss": "mean of what is minimised, the target's loss, since the last point; compare targets by nll instead",
    "train/accuracy": "share of training examples whose given label was predicted, during the epoch",
    "train/images_per_s": "training throughput over all ranks",
    "train/lr": "learning rate",
    "train/skipped_steps": "steps skipped since the job began because a gradient was not finite",
    "{split}_{labels}/accuracy": "share of examples predicted right by the weights (with a posterior: by its mean);"
    " split is val or test, labels are clean or, where not all clean ones are known, given",
    "{split}_{labels}/nll": "mean negative log likelihood, in nats",
    "{split}_{labels}/brier": "mean squared distance between probabilities and the one-hot label",
    "{split}_{labels}/ece": "expected calibration error, 15 equal-width bins",
    "{split}_{labels}_averaged/{figure}": "the same four of the prediction averaged over weight samples",
    "label_noise/{estimator}/p{q}": "q-th percentile of ‖ε‖₂; estimator is exact, linearised (both over the tracked"
    " examples) or training (over all that the epoch trained on)",
    "label_noise/{estimator}/mean": "mean of ‖ε‖₂, likewise",
    "label_noise/suspect_precision_100": "share of the 100 most suspect that are mislabelled, by clean labels",
}
"""Every metric a run logs, with what it means."""

EPOCH_END_METRIC = "train/accuracy"
"""The journal has it at the end of each epoch, and nowhere else."""

QUANTILES = (5, 25, 50, 75, 95, 99)
"""Percentiles of ‖ε‖₂ that become metrics."""

EvaluationFigure = Literal["accuracy", "nll", "brier", "ece"]
Split = Literal["val", "test"]
LabelKind = Literal["clean", "given"]
Predictor = Literal["mean", "averaged"]
"""`mean`: the weights, for a method with a posterior its mean; `averaged`: softmax averaged over weight samples."""


def evaluation_metric(split: Split, labels: LabelKind, predictor: Predictor, figure: EvaluationFigure) -> str:
    """Name of a metric, which says what was predicted how, and whether the labels it was held against are clean."""
    return f"{split}_{labels}{'_averaged' if predictor == 'averaged' else ''}/{figure}"


Estimator = Literal["exact", "linearised", "training"]
"""`exact`: Eq. 16, and `linearised`: Eq. 20, of the tracked examples with the model held still after the epoch.
`training`: Eq. 20 of all training examples, as the epoch's steps told it; trainer.label_noise.training says how it
differs. Only antithetic IVON steps tell it."""


class Histogram(Schema):
    """Counts between fixed edges; histograms with equal edges merge by adding counts."""

    edges: tuple[float, ...]
    """Bin edges, log-spaced, ascending; `counts[i]` covers [edges[i], edges[i+1])."""
    counts: tuple[int, ...]
    """One fewer than edges; what lies below the first or above the last edge is in the first or last bin."""
    num_examples: int
    """Sum of counts."""
    mean: float
    quantiles: dict[str, float]
    """Percentiles by name (`p50`), interpolated inside a bin: off by its width, a factor of 1.21, at most."""


class LabelNoiseRecord(Schema):
    """Label-noise histograms of one epoch: ‖ε‖₂ overall and for each given class.

    Over the tracked examples, and for the estimator `training` over all examples that the epoch trained on.
    """

    epoch: int
    step: int
    classes: tuple[str, ...]
    num_examples: int
    """Tracked examples."""
    overall: dict[Estimator, Histogram]
    """By estimator; empty for a method without a posterior."""
    per_class: dict[Estimator, tuple[Histogram, ...]]
    """By estimator, one histogram a class, in class order."""


class ReliabilityBin(Schema):
    """Examples whose top probability lies in [lower, upper)."""

    lower: float
    upper: float
    num_examples: int
    confidence: float | None
    """Mean top probability; null for an empty bin."""
    accuracy: float | None


class Evaluation(Schema):
    """How well a split is predicted."""

    split: Split
    labels: LabelKind
    """What the predictions were compared with."""
    predictor: Predictor = "mean"
    """`mean`: by the weights, for a method with a posterior by its mean; `averaged`: by the mean of the softmax over
    weight samples. Both use BatchNorm's statistics at the mean."""
    num_mc_samples: int | None = None
    """Weight samples averaged over; null for `mean`."""
    num_examples: int
    accuracy: float
    nll: float
    """Mean negative log likelihood, in nats."""
    brier: float
    ece: float
    """Expected calibration error over the reliability bins."""
    reliability: tuple[ReliabilityBin, ...]
    confusion: tuple[tuple[int, ...], ...]
    """confusion[label][predicted]: number of examples."""

    def metrics(self) -> dict[str, float]:
        """The figures by metric name."""
        figures: dict[EvaluationFigure, float] = {
            "accuracy": self.accuracy,
            "nll": self.nll,
            "brier": self.brier,
            "ece": self.ece,
        }
        return {evaluation_metric(self.split, self.labels, self.predictor, f): v for f, v in figures.items()}


class EvaluationReport(Schema):
    """The evaluation of one epoch."""

    epoch: int
    step: int
    classes: tuple[str, ...]
    splits: dict[str, Evaluation]
    """By the weights: `val`, and `test` after the last epoch (and each epoch where there is no val)."""
    averaged: dict[str, Evaluation] = {}
    """The same splits, averaged over weight samples; empty where that was not due, or without a posterior."""
    noise_transition: tuple[tuple[float, ...], ...] | None = None
    """noise_transition[i][j]: share of tracked examples predicted i whose given label is j."""


EXAMPLE_COLUMNS = {
    "example_id": "stable name of the example in its data set",
    "shard": "shard that holds it",
    "given_label": "the label it is trained on",
    "clean_label": "the true label where known, else null; never used in training",
    "predicted_label": "most probable class at the posterior mean",
    "p_given": "probability of the given label",
    "loss": "-log p_given, in nats",
    "margin": "logit of the given label minus the largest other logit",
    "entropy": "entropy of the prediction, in nats",
    "epsilon_exact": "‖ε‖₂ of Eq. 16, which few weight samples make somewhat larger; null without a posterior",
    "epsilon_exact_given": "component of that ε at the given label, signed",
    "epsilon_linearised": "root mean square over draws of ‖ε‖₂ of Eq. 20; null without a posterior",
    "epsilon_training": "‖ε‖₂ of Eq. 20 as the epoch's training step told it (IVON with antithetic pairs), else null",
    "num_records": "epochs recorded so far",
    "aum": "margin averaged over the recorded epochs (area under the margin)",
    "confidence": "p_given averaged over the recorded epochs",
    "variability": "standard deviation of p_given over the recorded epochs",
    "forgetting_events": "times the example went from predicted-as-given to not",
    "suspicion": "-aum: high for examples that are likely mislabelled",
    "ambiguity": "epsilon_linearised, or the entropy where there is no posterior: high near a decision boundary",
}
"""Columns of examples/epoch_NNNN.parquet, in order, with what each means."""


class AttemptResult(Schema):
    """Says that an attempt is complete. Written last, atomically."""

    version: Literal[1] = 1
    job_id: str
    attempt: int
    outcome: Literal["succeeded", "stopped"]
    """`stopped`: asked to stop; what it had by then is kept."""
    num_epochs: int
    """Epochs finished."""
    num_steps: int
    metrics: dict[str, float]
    """The last value of each per-epoch metric."""
    files: dict[str, str]
    """sha256 of each result file, by path inside the attempt's folder."""
    mlflow_run_id: str | None = None
    mlflow_experiment_id: str | None = None
