"""A run: everything that training works with, built from the job, and how it is saved and taken up again."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from data_pipeline.examples import ExampleTable
from trainer import checkpoint, ddp
from trainer.errors import AbortedError, StopAskedError
from trainer.job_data import JobData, tracked_rows
from trainer.label_noise.record import ExampleRecord
from trainer.label_noise.training import TrainingNoise
from trainer.meters import Meters
from trainer.model import build_model
from trainer.optim import build_optimizer, rank_average
from trainer.pulse import Pulse
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder
from trainer.run_schema import AttemptContext
from trainer.schedule import lr_factor
from trainer.spec import JobSpec
from trainer.steps import Learner, StepFunction, step_for
from trainer.supervisor import Supervisor
from trainer.targets import build_target


@dataclass
class Position:
    """Where a run stands between two steps."""

    epoch: int = 1
    """The epoch under way, from 1; one past the last when all are done."""
    batch: int = 0
    """Batches done of it."""
    step: int = 0
    """Optimizer steps done since the job began."""


@dataclass(frozen=True, eq=False)
class Run:
    """What one rank trains with."""

    context: AttemptContext
    ranks: Ranks
    data: JobData
    network: nn.Module
    """Holds the weights (for IVON: the posterior mean); `learner.model` is this or DDP around it."""
    learner: Learner
    take_step: StepFunction
    record: ExampleRecord
    """Of the tracked examples; kept up by rank 0."""
    meters: Meters
    training_noise: TrainingNoise
    """Label noise of the epoch under way, where the method's steps tell it."""
    folder: RunFolder
    """Written by rank 0 only."""
    supervisor: Supervisor
    pulse: Pulse

    @property
    def spec(self) -> JobSpec:
        """The job."""
        return self.context.spec

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch, the same on every rank."""
        return steps_per_epoch(self.spec, self.data)

    def is_over(self) -> bool:
        """Whether the ranks agreed to stop early; AbortedError if it is to be at once. Called by all ranks."""
        order = self.pulse.agreed_order()
        if order == "abort":
            raise AbortedError("the service has ended this attempt")
        return order == "stop"

    def stop_if_asked(self) -> None:
        """StopAskedError if the ranks agreed to stop early: for what is done at an epoch's end. Called by all ranks."""
        if self.is_over():
            raise StopAskedError

    def set_learning_rate(self, step: int) -> float:
        """Give the optimizer the learning rate of a step, and return it."""
        rate = self.spec.method.lr * lr_factor(self.spec.schedule, step, self.steps_per_epoch)
        for group in self.learner.optimizer.param_groups:
            group["lr"] = rate
        return rate


def steps_per_epoch(spec: JobSpec, data: JobData) -> int:
    """All batches of the training split, or `max_steps_per_epoch` of them."""
    num_batches = data.train.loader.num_batches
    return min(num_batches, spec.schedule.max_steps_per_epoch or num_batches)


def build_run(context: AttemptContext, ranks: Ranks, data: JobData, supervisor: Supervisor) -> Run:
    """Build network, method and meters. Every rank builds the same weights from the seed."""
    spec, classes, num_train = context.spec, data.manifest.classes, len(data.train.table)
    network = build_model(spec.model, len(classes), seed=spec.seed)
    network = network.to(memory_format=torch.channels_last).to(ranks.device)
    with ddp.without_compiler():
        optimizer = build_optimizer(spec.method, network, num_examples=num_train, seed=spec.seed)
    model = ddp.wrap(network, ranks)
    rank_average.register(model, optimizer)

    def autocast() -> contextlib.AbstractContextManager[object]:
        if spec.precision == "bf16":
            return torch.autocast(ranks.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    num_steps = spec.schedule.epochs * steps_per_epoch(spec, data)
    return Run(
        context=context,
        ranks=ranks,
        data=data,
        network=network,
        learner=Learner(model, optimizer, build_target(spec.target, len(classes), ranks), autocast),
        take_step=step_for(spec.method),
        record=_record_of(data.tracked.table),
        meters=Meters(ranks),
        training_noise=TrainingNoise(len(classes), num_train, tracked_rows(spec, num_train), ranks),
        folder=RunFolder(context.run_dir),
        supervisor=supervisor,
        pulse=Pulse(supervisor, ranks, num_epochs=spec.schedule.epochs, num_steps=num_steps),
    )


def _record_of(table: ExampleTable) -> ExampleRecord:
    return ExampleRecord(table.example_ids, table.shards, table.given_labels, table.clean_labels)


def save_checkpoint(run: Run, position: Position) -> None:
    """Save what the next step depends on. Called by all ranks between the same two steps; rank 0 writes."""
    ddp.average_statistics(run.network, run.ranks)
    target, meters = run.learner.target.state_dict(), run.meters.state_dict()
    training_noise = run.training_noise.state_dict()
    if run.ranks.is_main:
        state = checkpoint.Checkpoint(
            loader={
                **run.data.train.loader.state_dict(),  # which may stand elsewhere: BatchNorm's statistics read it too
                "epoch": position.epoch,
                "examples_delivered": run.data.train.loader.examples_before(position.batch),
            },
            step=position.step,
            journal_bytes=run.folder.journal_bytes(),
            model=run.network.state_dict(),
            optimizer=run.learner.optimizer.state_dict(),
            target=target,
            record=run.record.state_dict(),
            meters=meters,
            training_noise=training_noise,
        )
        checkpoint.save(run.folder.path, state)


def resume(run: Run) -> Position:
    """Take up the newest good checkpoint of this attempt or of earlier ones, or begin. Called by all ranks.

    What the journal and the folders hold beyond that checkpoint is dropped: those epochs will be run again.
    """
    run_dirs = [run.folder.path, *(Path(path) for path in run.context.resume_dirs)]
    found = checkpoint.newest_good(run_dirs) if run.ranks.is_main else None
    name = run.ranks.broadcast_text("" if found is None else str(found))
    if not name:
        if run.ranks.is_main:
            run.folder.begin(None, 0)
        return Position()
    state = checkpoint.load(Path(name))
    run.data.train.loader.load_state_dict(state.loader)  # ValueError where data or order are not the same
    batch_size = run.spec.data.batch_size
    if state.loader["batch_size"] != batch_size:  # steps and their learning rates would not be those that were done
        raise ValueError(
            f"batch_size was {state.loader['batch_size']} when this run began, now it is {batch_size};"
            " it must be the same"
        )
    run.network.load_state_dict(state.model)
    run.learner.optimizer.load_state_dict(dict(state.optimizer))
    run.learner.target.load_state_dict(state.target)
    run.meters.load_state_dict(state.meters)
    run.training_noise.load_state_dict(state.training_noise)
    if run.ranks.is_main:
        run.record.load_state_dict(dict(state.record))
        run.folder.begin(checkpoint.run_dir_of(Path(name)), state.journal_bytes)
    batch = -(-state.loader["examples_delivered"] // batch_size)
    return Position(epoch=state.loader["epoch"], batch=batch, step=state.step)
