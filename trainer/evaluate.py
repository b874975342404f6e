"""How well the network at hand predicts val and test, over all ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data_pipeline.augment import to_model_input
from data_pipeline.loader import Batch
from trainer import ddp
from trainer.calibration import PredictionCounts
from trainer.errors import diverged
from trainer.job_data import EvaluatedSplit, JobData, label_kind
from trainer.label_noise.estimators import posterior_of
from trainer.ranks import Ranks
from trainer.run import Position, Run
from trainer.run_schema import Evaluation

NUM_STATISTICS_EXAMPLES = 2048
"""Training examples that BatchNorm's statistics are estimated from anew: the noise of a mean over them is about 2%."""


def evaluate_epoch(run: Run, epoch: int) -> dict[EvaluatedSplit, Evaluation]:
    """Evaluate the splits that are due after this epoch. Called by all ranks; all get the same figures.

    The weights are the posterior mean where there is a posterior. DivergedError if a prediction is not finite.
    """
    splits = due_splits(run.data, is_last=epoch == run.spec.schedule.epochs)
    return {split: _evaluate(run, split) for split in splits}


def due_splits(data: JobData, *, is_last: bool) -> tuple[EvaluatedSplit, ...]:
    """val after each epoch and test after the last; test after each where there is no val."""
    return tuple(split for split in data.evaluated if split == "val" or is_last or "val" not in data.evaluated)


def refresh_statistics(run: Run, position: Position) -> None:
    """Make BatchNorm's running statistics those of the weights that are evaluated. Called by all ranks.

    Training that samples weights collects them at the samples: then they are estimated anew at the mean, on training
    batches. Without sampling, the ranks' own are averaged.
    """
    layers = [module for module in run.network.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return
    if posterior_of(run.learner.optimizer) is not None:
        num_batches = -(-NUM_STATISTICS_EXAMPLES // run.spec.data.batch_size)
        batches = run.data.train.loader.epoch(position.epoch)
        _estimate_statistics(run.network, layers, zip(range(num_batches), batches, strict=False), run.ranks)
    ddp.average_statistics(run.network, run.ranks)


@torch.no_grad()
def _estimate_statistics(
    network: nn.Module, layers: list[_BatchNorm], batches: Iterable[tuple[int, Batch]], ranks: Ranks
) -> None:
    """Set running mean and variance to their plain average over the batches."""
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for a cumulative average
        network.train()
        for _, batch in batches:
            network(to_model_input(batch.images_BHWC, batch.flip_B, ranks.device))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@torch.no_grad()
def _evaluate(run: Run, split: EvaluatedSplit) -> Evaluation:
    part = run.data.evaluated[split]
    kind = label_kind(part.table)
    counts = PredictionCounts(len(run.data.manifest.classes), run.ranks.device)
    run.network.eval()
    try:
        for batch in part.loader.epoch(0):
            labels_B = batch.clean_labels_B if kind == "clean" else batch.given_labels_B
            with run.learner.autocast():
                logits_BC = run.network(to_model_input(batch.images_BHWC, batch.flip_B, run.ranks.device))
            counts.add(logits_BC[batch.valid_B].float(), labels_B[batch.valid_B])
    finally:
        run.network.train()
    run.ranks.sum_(counts.table)
    if not counts.table.isfinite().all():
        raise diverged(f"the predictions on {split}", run.spec.method.lr)
    return counts.evaluation(split, kind)
