"""What is recorded of the tracked examples after an epoch: label noise, and how each is predicted."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainer.chunks import Chunk, chunks
from trainer.errors import diverged
from trainer.label_noise.estimators import EstimateOptions, NoiseEstimate, estimate, posterior_of
from trainer.label_noise.histogram import ClassHistogram, noise_record
from trainer.label_noise.record import example_rows
from trainer.run import Position, Run
from trainer.run_schema import EXAMPLES_DIR, LABEL_NOISE_DIR, Estimator, LabelNoiseRecord, epoch_file

NUM_SUSPECTS = 100


@dataclass(frozen=True)
class Recording:
    """What an epoch's recording amounts to; on ranks other than 0 empty."""

    metrics: dict[str, float]
    noise_transition: tuple[tuple[float, ...], ...] | None


def is_due(every_epochs: int, epoch: int, num_epochs: int) -> bool:
    """Whether an epoch's end is recorded: each n-th, and the last."""
    return epoch % every_epochs == 0 or epoch == num_epochs


def record_epoch(run: Run, position: Position, epoch: int) -> Recording:
    """Measure the tracked examples and publish what came out. Called by all ranks; each measures its share.
    StopAskedError, before anything is published, if they are asked to stop.

    Rows go to rank 0 chunk by chunk: it holds the record, and never all rows at once.
    """
    classes, device = run.data.manifest.classes, run.ranks.device
    histograms: dict[Estimator, ClassHistogram] = {
        "exact": ClassHistogram(len(classes), device),
        "linearised": ClassHistogram(len(classes), device),
    }
    run.record.start_epoch()
    num_bad = torch.zeros((), dtype=torch.int64, device=device)
    for chunk in chunks(run.data.tracked.loader, device):
        run.stop_if_asked()
        measured = _measure(run, chunk, epoch)
        num_bad += _count(measured, chunk, histograms)
        rows = run.ranks.gather_rows(example_rows(chunk.rows_B, chunk.given_labels_B, measured).cpu())
        if rows is not None:
            run.record.update(rows)
    if run.ranks.sum_(num_bad).item():
        raise diverged("the label noise of tracked examples", run.spec.method.lr)
    for histogram in histograms.values():
        run.ranks.sum_(histogram.table)
    trained = run.training_noise.over_ranks()
    if not run.ranks.is_main:
        return Recording({}, None)
    if trained is not None:
        histograms["training"] = trained.histogram
        run.record.update_trained(trained.tracked_N)
    noise = noise_record(
        histograms, epoch=epoch, step=position.step, classes=classes, num_examples=run.record.num_recorded
    )
    _publish(run, position, epoch, noise)
    table = run.record.to_table(("given_label", "clean_label", "predicted_label", "suspicion"))
    return Recording(
        metrics={**_noise_metrics(noise), **suspect_precision(table)},
        noise_transition=transition(table, len(classes)),
    )


def transition(table: pa.Table, num_classes: int) -> tuple[tuple[float, ...], ...]:
    """transition[i][j]: share of the examples predicted i whose given label is j; a class never predicted has zeros."""
    seen = table.filter(table["predicted_label"].is_valid())
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (seen["predicted_label"].to_numpy(), seen["given_label"].to_numpy()), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return tuple(tuple(row) for row in shares.tolist())


def suspect_precision(table: pa.Table) -> dict[str, float]:
    """Share of the most suspect examples that are mislabelled, among those whose clean label is known."""
    known = table.select(["given_label", "clean_label", "suspicion"]).drop_null()
    if not len(known):
        return {}
    most_suspect = known.sort_by([("suspicion", "descending")]).slice(0, NUM_SUSPECTS)
    wrong = most_suspect["given_label"].to_numpy() != most_suspect["clean_label"].to_numpy()
    return {"label_noise/suspect_precision_100": float(wrong.mean())}


def _measure(run: Run, chunk: Chunk, epoch: int) -> NoiseEstimate:
    asked = run.spec.label_noise
    options = EstimateOptions(
        seed=run.spec.seed,
        epoch=epoch,
        num_mc_samples=asked.num_mc_samples,
        estimator=asked.estimator,
        linearised_by=asked.linearised_by,
    )
    posterior = posterior_of(run.learner.optimizer)
    return estimate(run.network, posterior, chunk.images_BCHW, options, before_draw=run.stop_if_asked)


def _count(measured: NoiseEstimate, chunk: Chunk, histograms: Mapping[Estimator, ClassHistogram]) -> Tensor:
    """Add ‖ε‖₂ of a chunk to the histograms; the number of those that are not finite, which are left out."""
    num_bad = torch.zeros((), dtype=torch.int64, device=chunk.valid_B.device)
    for estimator, norms_B in _norms(measured).items():
        counted_B = chunk.valid_B & norms_B.isfinite()
        histograms[estimator].add(norms_B, chunk.given_labels_B, counted_B)
        num_bad += (chunk.valid_B & ~counted_B).sum()
    return num_bad


def _norms(noise: NoiseEstimate) -> dict[Estimator, Tensor]:
    """‖ε‖₂ of each example by the estimators there are."""
    norms: dict[Estimator, Tensor] = {}
    if noise.exact_BC is not None:
        norms["exact"] = noise.exact_BC.norm(dim=1)
    if noise.linearised_sq_B is not None:
        norms["linearised"] = noise.linearised_sq_B.sqrt()
    return norms


def _publish(run: Run, position: Position, epoch: int, noise: LabelNoiseRecord) -> None:
    picture = io.BytesIO()
    from trainer.label_noise import figure  # noqa: PLC0415 (matplotlib takes a second, before the first step)

    figure.draw(noise).save(picture, "PNG")
    files: dict[str, bytes | Callable[[Path], None]] = {
        epoch_file(LABEL_NOISE_DIR, epoch, "json"): noise.model_dump_json().encode(),
        epoch_file(LABEL_NOISE_DIR, epoch, "png"): picture.getvalue(),
        epoch_file(EXAMPLES_DIR, epoch, "parquet"): run.record.write_parquet,
    }
    for name, content in files.items():
        run.folder.publish(name, content, step=position.step, epoch=epoch)


def _noise_metrics(noise: LabelNoiseRecord) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for estimator, histogram in noise.overall.items():
        metrics |= {f"label_noise/{estimator}/{name}": value for name, value in histogram.quantiles.items()}
        metrics[f"label_noise/{estimator}/mean"] = histogram.mean
    return metrics
