"""How well the network at hand predicts val and test, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data_pipeline.loader import Batch
from data_pipeline.pictures.augment import to_model_input
from trainer import ddp
from trainer.calibration import PredictionCounts
from trainer.chunks import MAX_CHUNK_BYTES, chunks
from trainer.errors import diverged
from trainer.job_data import JobData, label_kind
from trainer.label_noise.estimators import logits_of, posterior_of
from trainer.optim.noise import DrawKey, Stream
from trainer.ranks import Ranks
from trainer.run import Position, Run
from trainer.run_schema import Evaluation, Split
from trainer.spec import JobSpec

NUM_STATISTICS_EXAMPLES = 2048
"""Training examples that BatchNorm's statistics are estimated from anew: the noise of a mean over them is about 2%."""


def evaluate_epoch(run: Run, epoch: int) -> tuple[Evaluation, ...]:
    """Evaluate the splits that are due after this epoch. Called by all ranks; all get the same figures.

    By the weights, the posterior mean where there is a posterior, and averaged over weight samples where that is due.
    DivergedError if a prediction is not finite, StopAskedError if the ranks are asked to stop.
    """
    splits = due_splits(run.data, is_last=epoch == run.spec.schedule.epochs)
    draws = due_draws(run.spec, epoch) if posterior_of(run.learner.optimizer) is not None else ()
    return tuple(evaluation for split in splits for evaluation in _evaluate(run, split, draws))


def due_splits(data: JobData, *, is_last: bool) -> tuple[Split, ...]:
    """val after each epoch and test after the last; test after each where there is no val."""
    return tuple(split for split in data.evaluated if split == "val" or is_last or "val" not in data.evaluated)


def due_draws(spec: JobSpec, epoch: int) -> tuple[DrawKey, ...]:
    """The weight samples to average over after this epoch, the same on all ranks; none where it is not due."""
    every_epochs = spec.evaluation.average_every_epochs or spec.schedule.epochs
    if epoch % every_epochs and epoch != spec.schedule.epochs:
        return ()
    return tuple(DrawKey(spec.seed, Stream.PREDICTION, epoch, i) for i in range(spec.evaluation.num_mc_samples))


def refresh_statistics(run: Run, position: Position) -> None:
    """Make BatchNorm's running statistics those of the weights that are evaluated. Called by all ranks.

    Training that samples weights collects them at the samples: then they are estimated anew at the mean, on training
    batches, unless `evaluation.reestimate_batchnorm` is off. Without sampling, the ranks' own are averaged.
    """
    layers = [module for module in run.network.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return
    if run.spec.evaluation.reestimate_batchnorm and posterior_of(run.learner.optimizer) is not None:
        loader = run.data.train.loader
        epoch_size = loader.examples_before(loader.num_batches)
        num_batches = num_statistics_batches(epoch_size, run.spec.data.batch_size)
        batches = loader.epoch(position.epoch)
        _estimate_statistics(run.network, layers, zip(range(num_batches), batches, strict=False), run.ranks)
    ddp.average_statistics(run.network, run.ranks)


def num_statistics_batches(num_train: int, batch_size: int) -> int:
    """Batches that BatchNorm's statistics are estimated from: whole ones, where there is one.

    The epoch's last may hold a few pictures repeated, on some rank none, and would weigh as much as the others.
    """
    return min(-(-NUM_STATISTICS_EXAMPLES // batch_size), max(1, num_train // batch_size))


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
def _evaluate(run: Run, split: Split, draws: tuple[DrawKey, ...]) -> list[Evaluation]:
    """By the weights; and averaged over the draws, if there are any."""
    part = run.data.evaluated[split]
    kind = label_kind(part.table)
    num_classes, device = len(run.data.manifest.classes), run.ranks.device
    mean, averaged = (PredictionCounts(num_classes, device) for _ in range(2))
    run.network.eval()
    try:
        for chunk in chunks(part.loader, device, MAX_CHUNK_BYTES if draws else 0):
            run.stop_if_asked()
            labels_B = (chunk.clean_labels_B if kind == "clean" else chunk.given_labels_B)[chunk.valid_B]
            logits_BC = _logits(run, chunk.images_BCHW)
            mean.add(logits_BC[chunk.valid_B], labels_B)
            if draws:
                log_p_BC = log_mean_softmax(_sampled_logits(run, chunk.images_BCHW, draws))
                averaged.add(log_p_BC[chunk.valid_B], labels_B)
    finally:
        run.network.train()
    for sums in (mean, averaged):
        run.ranks.sum_(sums.table)
        if not sums.table.isfinite().all():
            raise diverged(f"the predictions on {split}", run.spec.method.lr)
    by_weights = mean.evaluation(split, kind)
    return [by_weights, averaged.evaluation(split, kind, len(draws))] if draws else [by_weights]


def log_mean_softmax(logits: Sequence[Tensor]) -> Tensor:
    """log of the mean over samples of softmax(logits_BC), float64; finite also where that mean would round to 0."""
    log_p = torch.stack([logits_BC.double().log_softmax(dim=1) for logits_BC in logits])
    return log_p.logsumexp(dim=0) - math.log(len(logits))


def _sampled_logits(run: Run, images_BCHW: Tensor, draws: tuple[DrawKey, ...]) -> list[Tensor]:
    """Logits at each draw. BatchNorm works with the statistics at the mean."""
    posterior = posterior_of(run.learner.optimizer)
    assert posterior is not None, "only a posterior has samples"
    logits = []
    for draw in draws:
        run.stop_if_asked()
        with posterior.perturbed(draw):
            logits.append(_logits(run, images_BCHW))
    return logits


def _logits(run: Run, images_BCHW: Tensor) -> Tensor:
    with run.learner.autocast():
        return logits_of(run.network, images_BCHW).float()
