"""What is recorded of the tracked examples after an epoch: label noise, and how each is predicted."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data_pipeline.augment import to_model_input
from trainer.label_noise import figure
from trainer.label_noise.estimators import EstimateOptions, NoiseEstimate, estimate, posterior_of
from trainer.label_noise.histogram import ClassHistograms
from trainer.label_noise.record import example_rows
from trainer.run import Position, Run
from trainer.run_schema import EXAMPLES_DIR, LABEL_NOISE_DIR, Estimator, LabelNoiseRecord, epoch_file

MAX_CHUNK_BYTES = 256 * 2**20
"""Float32 images handed to the estimator at once: each draw samples all weights, so many images should share it."""
NUM_SUSPECTS = 100


@dataclass(frozen=True)
class Recording:
    """What an epoch's recording amounts to; on ranks other than 0 empty."""

    metrics: dict[str, float]
    noise_transition: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True)
class _Chunk:
    """Some tracked examples, on the device but for the slots."""

    images_BCHW: Tensor
    labels_B: Tensor
    valid_B: Tensor
    slots_B: Tensor


def is_due(every_epochs: int, epoch: int, num_epochs: int) -> bool:
    """Whether an epoch's end is recorded: each n-th, and the last."""
    return epoch % every_epochs == 0 or epoch == num_epochs


def record_epoch(run: Run, position: Position, epoch: int) -> Recording:
    """Measure the tracked examples and publish what came out. Called by all ranks; each measures its share."""
    classes = run.data.manifest.classes
    histograms = ClassHistograms(len(classes), run.ranks.device)
    rows = run.ranks.gather_rows(torch.cat([_measure(run, chunk, epoch, histograms) for chunk in _chunks(run)]))
    run.ranks.sum_(histograms.table)
    if rows is None:
        return Recording({}, None)
    rows = rows[rows[:, 0] >= 0]
    noise = histograms.record(epoch, position.step, classes, len(rows))
    run.record.start_epoch()
    run.record.update(rows)
    table = run.record.to_table()
    _publish(run, position, epoch, noise, table)
    return Recording(
        metrics={**_noise_metrics(noise), **_suspect_precision(table)},
        noise_transition=transition(table, len(classes)),
    )


def transition(table: pa.Table, num_classes: int) -> tuple[tuple[float, ...], ...]:
    """transition[i][j]: share of the examples predicted i whose given label is j; a class never predicted has zeros."""
    seen = table.filter(table["predicted_label"].is_valid())
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (seen["predicted_label"].to_numpy(), seen["given_label"].to_numpy()), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return tuple(tuple(row) for row in shares.tolist())


def _chunks(run: Run) -> Iterator[_Chunk]:
    """This rank's tracked examples, several batches at a time."""
    batches: list[_Chunk] = []
    for batch in run.data.tracked.loader.epoch(0):
        images_BCHW = to_model_input(batch.images_BHWC, batch.flip_B, run.ranks.device)
        device = run.ranks.device
        slots_B = torch.where(batch.valid_B, batch.indices_B, -1)
        batches.append(_Chunk(images_BCHW, batch.given_labels_B.to(device), batch.valid_B.to(device), slots_B))
        if sum(chunk.images_BCHW.nbytes for chunk in batches) >= MAX_CHUNK_BYTES:
            yield _joined(batches)
            batches = []
    if batches:
        yield _joined(batches)


def _joined(chunks: list[_Chunk]) -> _Chunk:
    return _Chunk(
        images_BCHW=torch.cat([chunk.images_BCHW for chunk in chunks]),
        labels_B=torch.cat([chunk.labels_B for chunk in chunks]),
        valid_B=torch.cat([chunk.valid_B for chunk in chunks]),
        slots_B=torch.cat([chunk.slots_B for chunk in chunks]),
    )


def _measure(run: Run, chunk: _Chunk, epoch: int, histograms: ClassHistograms) -> Tensor:
    """Rows of a chunk, on the CPU; its ‖ε‖₂ go into the histograms."""
    asked = run.spec.label_noise
    options = EstimateOptions(
        seed=run.spec.seed,
        epoch=epoch,
        num_mc_samples=asked.num_mc_samples,
        estimator=asked.estimator,
        linearised_by=asked.linearised_by,
    )
    noise = estimate(run.network, posterior_of(run.learner.optimizer), chunk.images_BCHW, options)
    for estimator, norms_B in _norms(noise).items():
        histograms.add(estimator, norms_B[chunk.valid_B], chunk.labels_B[chunk.valid_B])
    return example_rows(chunk.slots_B.to(run.ranks.device), chunk.labels_B, noise).cpu()


def _norms(noise: NoiseEstimate) -> dict[Estimator, Tensor]:
    """‖ε‖₂ of each example by the estimators there are."""
    norms: dict[Estimator, Tensor] = {}
    if noise.exact_BC is not None:
        norms["exact"] = noise.exact_BC.norm(dim=1)
    if noise.linearised_sq_B is not None:
        norms["linearised"] = noise.linearised_sq_B.sqrt()
    return norms


def _publish(run: Run, position: Position, epoch: int, noise: LabelNoiseRecord, table: pa.Table) -> None:
    picture, parquet = io.BytesIO(), io.BytesIO()
    figure.draw(noise).save(picture, "PNG")
    pq.write_table(table, parquet)
    files = {
        epoch_file(LABEL_NOISE_DIR, epoch, "json"): noise.model_dump_json().encode(),
        epoch_file(LABEL_NOISE_DIR, epoch, "png"): picture.getvalue(),
        epoch_file(EXAMPLES_DIR, epoch, "parquet"): parquet.getvalue(),
    }
    for name, data in files.items():
        run.folder.publish(name, data, step=position.step, epoch=epoch)


def _noise_metrics(noise: LabelNoiseRecord) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for estimator, histogram in noise.overall.items():
        metrics |= {f"label_noise/{estimator}/{name}": value for name, value in histogram.quantiles.items()}
        metrics[f"label_noise/{estimator}/mean"] = histogram.mean
    return metrics


def _suspect_precision(table: pa.Table) -> dict[str, float]:
    """Share of the most suspect examples that are mislabelled, among those whose clean label is known."""
    known = table.select(["given_label", "clean_label", "suspicion"]).drop_null()
    if not len(known):
        return {}
    most_suspect = known.sort_by([("suspicion", "descending")]).slice(0, NUM_SUSPECTS)
    wrong = most_suspect["given_label"].to_numpy() != most_suspect["clean_label"].to_numpy()
    return {"label_noise/suspect_precision_100": float(wrong.mean())}
