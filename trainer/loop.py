"""Training, from an AttemptContext to an AttemptResult. Knows no Ray, no MLflow and no HTTP."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import islice

import torch

from data_pipeline.loader import Batch
from data_pipeline.pictures.augment import to_model_input
from data_pipeline.reading.cache import ShardCache
from trainer import quarantine
from trainer.errors import StopAskedError, diverged
from trainer.evaluate import evaluate_epoch, refresh_statistics
from trainer.job_data import open_data
from trainer.optim import num_skipped_steps
from trainer.ranks import Ranks
from trainer.recording import Recording, is_due, record_epoch
from trainer.run import Position, Run, build_run, resume, save_checkpoint
from trainer.run_schema import (
    EPOCH_END_METRIC,
    EVALUATION_DIR,
    MODEL_FILE,
    AttemptContext,
    AttemptResult,
    EpochSummary,
    Evaluation,
    EvaluationReport,
    epoch_file,
)
from trainer.supervisor import Supervisor

MAX_POINTS_PER_EPOCH = 20
MIN_STEPS_PER_POINT = 50


def train(
    context: AttemptContext, ranks: Ranks, supervisor: Supervisor, cache: ShardCache | None = None
) -> AttemptResult:
    """Train a job to its end, or until the supervisor asks to stop; called by all ranks alike.

    The run folder then holds everything but the result itself, which the caller publishes as the last file. `cache` is
    this machine's, for data that lies elsewhere.
    """
    with open_data(context.spec, ranks, cache) as data:
        run = build_run(context, ranks, data, supervisor)
        run.pulse.enter("starting", epoch=0, step=0)
        position = resume(run)
        run.supervisor.began(finished_epochs(run) if ranks.is_main else ())
        while position.epoch <= run.spec.schedule.epochs:
            train_epoch(run, position)
            if run.is_over() or not finish_epoch(run, position):
                run.pulse.enter("finishing", epoch=position.epoch - 1, step=position.step)  # the service gives it time
                save_checkpoint(run, position)
                break
        run.pulse.enter("finishing", epoch=position.epoch - 1, step=position.step)
        return finish(run, position)


def finished_epochs(run: Run) -> tuple[EpochSummary, ...]:
    """The epochs that the journal holds."""
    ends = [entry for entry in run.folder.entries() if EPOCH_END_METRIC in entry.metrics]
    return tuple(EpochSummary(epoch=entry.epoch, metrics=entry.metrics) for entry in ends)


def train_epoch(run: Run, position: Position) -> None:
    """Train from `position` to the end of its epoch, or until the ranks agree to stop."""
    run.pulse.enter("training", epoch=position.epoch, step=position.step)
    run.network.train()
    loader, num_left = run.data.train.loader, run.steps_per_epoch - position.batch
    for batch in islice(loader.epoch(position.epoch, loader.examples_before(position.batch)), num_left):
        if run.is_over():
            return
        rate = run.set_learning_rate(position.step)
        train_step(run, batch)
        position.batch += 1
        position.step += 1
        run.pulse.count_step(batch.num_valid_global, run.meters, epoch=position.epoch, step=position.step)
        if position.batch == run.steps_per_epoch:
            continue
        if is_point(position.batch, run.steps_per_epoch):
            log_point(run, position, rate)
        every_steps = run.spec.fault_tolerance.checkpoint_every_steps
        if every_steps and position.step % every_steps == 0:
            save_checkpoint(run, position)


def train_step(run: Run, batch: Batch) -> None:
    """One optimizer step on this rank's share of a global batch."""
    device = run.ranks.device
    images_BCHW = to_model_input(batch.images_BHWC, batch.flip_B, device)
    labels_B = batch.given_labels_B.to(device, non_blocking=True)
    valid_B = batch.valid_B.to(device, non_blocking=True)
    # DDP averages over ranks; with these weights that average is the mean over the valid examples of the global batch.
    weights_B = valid_B.float() * (run.ranks.world_size / max(1, batch.num_valid_global))
    output = run.take_step(run.learner, images_BCHW, labels_B, weights_B)
    run.meters.add(output.loss, output.logits_BC, labels_B, valid_B)
    run.learner.target.observe(output.logits_BC, labels_B, valid_B)
    if output.epsilon_sq_B is not None:
        run.training_noise.add(output.epsilon_sq_B, labels_B, valid_B, batch.indices_B)


def is_point(batch: int, num_batches: int) -> bool:
    """Whether the journal gets a point after `batch` batches: up to 20 an epoch, evenly spaced, at least 50 apart."""
    num_points = max(1, min(MAX_POINTS_PER_EPOCH, num_batches // MIN_STEPS_PER_POINT))
    return batch * num_points // num_batches > (batch - 1) * num_points // num_batches


def log_point(run: Run, position: Position, rate: float) -> None:
    """Journal the loss since the last point; fail if too much of the data is unreadable. Called by all ranks."""
    quarantine.hold_to_limit(run, position)
    metrics = training_metrics(run, rate)
    if run.ranks.is_main:
        run.folder.log(step=position.step, epoch=position.epoch, metrics=metrics)


def training_metrics(run: Run, rate: float) -> dict[str, float]:
    """Loss, throughput and learning rate; DivergedError if the weights are no longer finite. Called by all ranks."""
    metrics = {
        "train/loss": run.meters.point_loss(),
        "train/images_per_s": run.pulse.epoch_images_per_s(),
        "train/lr": rate,
    }
    if not torch.isfinite(torch.tensor(metrics["train/loss"])):
        if not all(bool(parameter.isfinite().all()) for parameter in run.network.parameters()):
            raise diverged("the weights", run.spec.method.lr)
        del metrics["train/loss"]  # a step that the optimizer skipped: no number to show
    return metrics


def finish_epoch(run: Run, position: Position) -> bool:
    """Evaluate, record, publish and checkpoint an epoch whose steps are done, and move on to the next.

    False if the ranks agreed to stop meanwhile: all is then as before, and is done when the run is taken up again.
    """
    meters, record = run.meters.state_dict(), run.record.state_dict()
    try:
        end = measure_epoch(run, position)
    except StopAskedError:
        run.meters.load_state_dict(meters)
        run.record.load_state_dict(record)
        return False
    quarantine.hold_to_limit(run, position)
    quarantine.publish(run, position)
    if run.ranks.is_main:
        publish_evaluation(run, position, end.evaluations, end.recording)
        run.folder.log(step=position.step, epoch=position.epoch, metrics=end.metrics)
    run.learner.target.finish_epoch()
    run.training_noise.start_epoch()
    summary = EpochSummary(epoch=position.epoch, metrics=end.metrics)
    position.epoch, position.batch = position.epoch + 1, 0
    save_checkpoint(run, position)
    run.supervisor.epoch_finished(summary)
    return True


@dataclass(frozen=True)
class EpochEnd:
    """What was measured at an epoch's end."""

    metrics: dict[str, float]
    evaluations: tuple[Evaluation, ...]
    recording: Recording


def measure_epoch(run: Run, position: Position) -> EpochEnd:
    """Sum up the epoch's steps, evaluate and record. StopAskedError if the ranks agreed to stop meanwhile."""
    epoch, step = position.epoch, position.step
    quarantine.hold_to_limit(run, position)
    metrics = training_metrics(run, run.set_learning_rate(step - 1))
    metrics[EPOCH_END_METRIC] = run.meters.epoch_accuracy()
    num_skipped = num_skipped_steps(run.learner.optimizer)
    if num_skipped is not None:
        metrics["train/skipped_steps"] = num_skipped
    run.pulse.epoch_ended(metrics.get("train/loss"))
    run.pulse.enter("evaluating", epoch=epoch, step=step)
    refresh_statistics(run, position)
    evaluations = evaluate_epoch(run, epoch)
    for evaluation in evaluations:
        metrics |= evaluation.metrics()
    recording = Recording({}, None)
    if is_due(run.spec.label_noise.every_epochs, epoch, run.spec.schedule.epochs):
        run.pulse.enter("recording", epoch=epoch, step=step)
        recording = record_epoch(run, position, epoch)
        metrics |= recording.metrics
    return EpochEnd(metrics, evaluations, recording)


def publish_evaluation(run: Run, position: Position, evaluations: tuple[Evaluation, ...], recording: Recording) -> None:
    """Write the epoch's EvaluationReport."""
    report = EvaluationReport(
        epoch=position.epoch,
        step=position.step,
        classes=run.data.manifest.classes,
        splits={e.split: e for e in evaluations if e.predictor == "mean"},
        averaged={e.split: e for e in evaluations if e.predictor == "averaged"},
        noise_transition=recording.noise_transition,
    )
    name = epoch_file(EVALUATION_DIR, position.epoch, "json")
    run.folder.publish(name, report.model_dump_json().encode(), step=position.step, epoch=position.epoch)


def finish(run: Run, position: Position) -> AttemptResult:
    """Publish the model, and sum up what the run folder holds. Called by all ranks; all get the same result."""
    summary = ""
    if run.ranks.is_main:
        weights = io.BytesIO()
        torch.save({name: value.cpu() for name, value in run.network.state_dict().items()}, weights)
        epoch = position.epoch - 1
        run.folder.publish(MODEL_FILE, weights.getvalue(), step=position.step, epoch=epoch)
        metrics: dict[str, float] = {}
        for entry in run.folder.entries():
            metrics |= entry.metrics
        result = AttemptResult(
            job_id=run.context.job_id,
            attempt=run.context.attempt,
            outcome="succeeded" if epoch == run.spec.schedule.epochs else "stopped",
            num_epochs=epoch,
            num_steps=position.step,
            metrics=metrics,
            files=run.folder.checksums(),
        )
        summary = result.model_dump_json()
    return AttemptResult.model_validate_json(run.ranks.broadcast_text(summary))
