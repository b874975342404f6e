"""Label noise that antithetic IVON's own steps tell, through the loop."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.training import (
    ALONE,
    IVON,
    SGD,
    Watcher,
    context_for,
    digits_spec,
    figures,
    noisy_digits,
    published,
    train_alone,
)
from trainer import checkpoint, loop
from trainer.label_noise.histogram import counts
from trainer.run_schema import LabelNoiseRecord, Progress

NUM_TRAIN = 1297
ANTITHETIC = {**IVON, "num_mc_samples": 2, "antithetic": True}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_digits(tmp_path_factory.mktemp("digits"))


def record_of(run_dir: Path, epoch: int) -> LabelNoiseRecord:
    return LabelNoiseRecord.model_validate_json((run_dir / f"label_noise/epoch_{epoch:04d}.json").read_bytes())


def test_every_training_example_is_measured_in_every_epoch(manifest: Path, tmp_path: Path) -> None:
    result = train_alone(context_for(digits_spec(manifest, method=ANTITHETIC), tmp_path))
    for epoch in (1, 2):
        noise = record_of(tmp_path, epoch)
        assert set(noise.overall) == {"exact", "linearised", "training"}
        assert noise.num_examples == noise.overall["exact"].num_examples == 150
        assert noise.overall["training"].num_examples == sum(noise.overall["training"].counts) == NUM_TRAIN
        given = [part.num_examples for part in noise.per_class["training"]]
        assert sum(given) == NUM_TRAIN
        assert min(given) > 100
        # Of a moving model: not what recording finds with the model held still.
        ratio = noise.overall["training"].quantiles["p50"] / noise.overall["linearised"].quantiles["p50"]
        assert 0.4 < ratio < 2.5
    assert result.metrics["label_noise/training/p50"] == record_of(tmp_path, 2).overall["training"].quantiles["p50"]


def test_of_a_model_that_stays_where_it_is_it_is_the_recorded_noise(manifest: Path, tmp_path: Path) -> None:
    """A trained model and a rate of nearly 0: what differs is one draw in place of 64, another one for each batch."""
    schedule = {"epochs": 8, "warmup_epochs": 1}
    train_alone(context_for(digits_spec(manifest, method=SGD, schedule=schedule), tmp_path / "sgd"))
    spec = digits_spec(
        manifest,
        model={"arch": "small_cnn", "weights": str(tmp_path / "sgd/model.pt")},
        method={**ANTITHETIC, "lr": 1e-9, "beta2": 0.999999},
        data={"manifest": str(manifest), "image_size": 8, "batch_size": 16, "augmentation": "none"},
        schedule={"epochs": 1},
        label_noise={"num_examples": "all", "num_mc_samples": 128},
    )
    train_alone(context_for(spec, tmp_path / "ivon"))
    noise = record_of(tmp_path / "ivon", 1)
    ratio = noise.overall["training"].quantiles["p50"] / noise.overall["linearised"].quantiles["p50"]
    assert 0.6 < ratio < 1.1  # a norm's median is below its root mean square
    table = pq.read_table(tmp_path / "ivon/examples/epoch_0001.parquet").to_pandas()
    for label, part in enumerate(noise.per_class["training"]):
        norms_B = torch.from_numpy(table["epsilon_training"][table["given_label"] == label].to_numpy(copy=True))
        assert np.abs(counts(norms_B).numpy() - np.array(part.counts)).sum() <= 4  # float32 may cross an edge
    squares = table[["epsilon_training", "epsilon_linearised"]].pow(2).sum()
    assert squares["epsilon_training"] == pytest.approx(squares["epsilon_linearised"], rel=0.3)


def test_a_cut_epoch_measures_what_it_came_by(manifest: Path, tmp_path: Path) -> None:
    schedule = {"epochs": 1, "max_steps_per_epoch": 3}
    train_alone(context_for(digits_spec(manifest, method=ANTITHETIC, schedule=schedule), tmp_path))
    assert record_of(tmp_path, 1).overall["training"].num_examples == 3 * 64
    found = pq.read_table(tmp_path / "examples/epoch_0001.parquet")["epsilon_training"]
    assert 0 < len(found) - found.null_count < 60  # of 150, about a seventh


@pytest.mark.parametrize("method", [IVON, {**IVON, "num_mc_samples": 2}, {"kind": "sgd"}], ids=["one", "plain", "sgd"])
def test_other_steps_tell_nothing(manifest: Path, tmp_path: Path, method: dict[str, object]) -> None:
    schedule = {"epochs": 1, "max_steps_per_epoch": 3}
    train_alone(context_for(digits_spec(manifest, method=method, schedule=schedule), tmp_path))
    assert "training" not in record_of(tmp_path, 1).overall
    found = pq.read_table(tmp_path / "examples/epoch_0001.parquet")["epsilon_training"]
    assert found.null_count == len(found)
    newest = checkpoint.newest_good([tmp_path])
    assert newest is not None
    assert checkpoint.load(newest).training_noise == {}


class CutOffError(Exception):
    """Stands for a kill at this moment."""


class CutInSecondEpoch(Watcher):
    def progress(self, progress: Progress) -> None:
        if progress.phase == "recording" and progress.epoch == 2:
            raise CutOffError


def test_resuming_inside_an_epoch_is_exact(manifest: Path, tmp_path: Path) -> None:
    spec = digits_spec(
        manifest, method=ANTITHETIC, schedule={"epochs": 3}, fault_tolerance={"checkpoint_every_steps": 8}
    )
    train_alone(context_for(spec, tmp_path / "through"))
    with pytest.raises(CutOffError):
        loop.train(context_for(spec, tmp_path / "cut"), ALONE, CutInSecondEpoch())
    newest = checkpoint.newest_good([tmp_path / "cut"])
    assert newest is not None
    assert checkpoint.load(newest).loader["examples_delivered"] == 19 * spec.data.batch_size
    train_alone(context_for(spec, tmp_path / "cut"))
    assert figures(tmp_path / "through") == figures(tmp_path / "cut")
    for name in published(tmp_path / "through"):
        assert (tmp_path / "through" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name


def test_recording_by_jvp(manifest: Path, tmp_path: Path) -> None:
    """Through the loop: the norms are nearly those of pairs."""
    noise = {}
    for by in ("antithetic", "jvp"):
        spec = digits_spec(
            manifest,
            schedule={"epochs": 1, "max_steps_per_epoch": 5},
            label_noise={"num_examples": 100, "num_mc_samples": 4, "linearised_by": by},
        )
        train_alone(context_for(spec, tmp_path / by))
        noise[by] = record_of(tmp_path / by, 1).overall["linearised"]
    medians = {by: histogram.quantiles["p50"] for by, histogram in noise.items()}
    assert medians["jvp"] == pytest.approx(medians["antithetic"], rel=0.05)
    assert noise["jvp"] != noise["antithetic"]


def test_steps_are_the_same_whether_anyone_listens(manifest: Path, tmp_path: Path) -> None:
    """Telling the noise touches nothing that training depends on: every other epoch recorded gives the same weights."""
    weights = []
    for every in (1, 2):
        spec = digits_spec(
            manifest, method=ANTITHETIC, schedule={"epochs": 2}, label_noise={"every_epochs": every, "num_examples": 50}
        )
        train_alone(context_for(spec, tmp_path / str(every)))
        weights.append(torch.load(tmp_path / str(every) / "model.pt", weights_only=True))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    first, second = (record_of(tmp_path / str(every), 2).overall["training"] for every in (1, 2))
    assert first == second
