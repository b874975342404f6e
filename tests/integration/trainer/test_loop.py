"""The loop, end to end on scikit-learn's digits, in one process."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.sources.clothing1m import Clothing1M
from tests.sample_data import make_clothing
from tests.training import IVON, SGD, Watcher, context_for, digits_spec, figures, noisy_digits, published, train_alone
from trainer.errors import DivergedError
from trainer.model import build_model
from trainer.run_schema import EXAMPLE_COLUMNS, METRICS, QUANTILES, EvaluationReport, LabelNoiseRecord
from trainer.spec import JobSpec


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_digits(tmp_path_factory.mktemp("digits"))


def test_ivon_leaves_a_complete_run_folder(manifest: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    result = train_alone(context_for(digits_spec(manifest), tmp_path), watcher)

    assert (result.outcome, result.num_epochs, result.num_steps) == ("succeeded", 2, 2 * 21)
    assert [summary.epoch for summary in watcher.epochs] == [1, 2]
    assert {"starting", "training", "evaluating", "recording", "finishing"} <= set(watcher.phases)
    for name, digest in result.files.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert published(tmp_path) == [
        *(
            name
            for epoch in (1, 2)
            for name in (
                f"label_noise/epoch_{epoch:04d}.json",
                f"label_noise/epoch_{epoch:04d}.png",
                f"examples/epoch_{epoch:04d}.parquet",
                f"evaluation/epoch_{epoch:04d}.json",
            )
        ),
        "model.pt",
    ]
    assert set(result.files) == {*published(tmp_path), "journal.jsonl"}


def test_metrics_have_the_agreed_names(manifest: Path, tmp_path: Path) -> None:
    result = train_alone(context_for(digits_spec(manifest), tmp_path))
    known = {"label_noise/suspect_precision_100"} | {name for name in METRICS if "{" not in name}
    evaluated = [f"{split}_clean{how}" for split in ("val", "test") for how in ("", "_averaged")]
    known |= {f"{what}/{name}" for what in evaluated for name in ("accuracy", "nll", "brier", "ece")}
    quantiles = [f"p{q}" for q in QUANTILES]
    known |= {f"label_noise/{e}/{name}" for e in ("exact", "linearised") for name in (*quantiles, "mean")}
    assert set(result.metrics) == known


def test_records_say_what_the_tracked_examples_are(manifest: Path, tmp_path: Path) -> None:
    train_alone(context_for(digits_spec(manifest), tmp_path))
    noise = LabelNoiseRecord.model_validate_json((tmp_path / "label_noise/epoch_0002.json").read_bytes())
    assert noise.num_examples == 150
    for estimator, histogram in noise.overall.items():
        assert sum(histogram.counts) == histogram.num_examples == 150
        assert sum(part.num_examples for part in noise.per_class[estimator]) == 150
    with Image.open(tmp_path / "label_noise/epoch_0002.png") as picture:
        assert picture.size == (900, 500)

    table = pq.read_table(tmp_path / "examples/epoch_0002.parquet").to_pydict()
    assert list(table) == list(EXAMPLE_COLUMNS)
    assert table["num_records"] == [2] * 150
    assert all(0 <= p <= 1 for p in table["p_given"])
    flipped = np.mean(np.array(table["given_label"]) != np.array(table["clean_label"]))
    assert 0.2 < flipped < 0.4

    report = EvaluationReport.model_validate_json((tmp_path / "evaluation/epoch_0002.json").read_bytes())
    assert {split: e.labels for split, e in report.splits.items()} == {"val": "clean", "test": "clean"}
    assert (report.splits["val"].num_examples, report.splits["test"].num_examples) == (200, 300)
    assert report.noise_transition is not None
    assert all(abs(sum(row) - 1) < 1e-9 or sum(row) == 0 for row in report.noise_transition)
    first = json.loads((tmp_path / "evaluation/epoch_0001.json").read_text())
    assert list(first["splits"]) == ["val"]


def test_sgd_learns_through_the_noise_and_has_no_epsilon(manifest: Path, tmp_path: Path) -> None:
    spec = digits_spec(
        manifest,
        method=SGD,
        target={"kind": "smoothed", "rate": 0.1},
        schedule={"epochs": 8, "warmup_epochs": 1},
        label_noise={"every_epochs": 8, "num_examples": "all"},
    )
    result = train_alone(context_for(spec, tmp_path))
    assert result.metrics["test_clean/accuracy"] > 0.8
    assert result.metrics["label_noise/suspect_precision_100"] > 0.8
    assert [name for name in published(tmp_path) if name.startswith("examples/")] == ["examples/epoch_0008.parquet"]
    table = pq.read_table(tmp_path / "examples/epoch_0008.parquet")
    assert table["epsilon_exact"].null_count == len(table) == 1297


def test_saved_model_predicts_as_evaluated(manifest: Path, tmp_path: Path) -> None:
    spec = digits_spec(manifest)
    train_alone(context_for(spec, tmp_path))
    other = spec.model_copy(update={"model": spec.model.model_copy(update={"weights": str(tmp_path / "model.pt")})})
    model = build_model(other.model, 10, seed=5)
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_stopping_keeps_what_there_is(manifest: Path, tmp_path: Path) -> None:
    spec = digits_spec(manifest, schedule={"epochs": 50})
    result = train_alone(context_for(spec, tmp_path), Watcher(stop_after_epoch=1))
    assert result.outcome == "stopped"
    assert 1 <= result.num_epochs < 50
    assert "model.pt" in result.files


def test_divergence_is_said_in_words(manifest: Path, tmp_path: Path) -> None:
    spec = digits_spec(manifest, method={"kind": "sgd", "lr": 1e30})
    with pytest.raises(DivergedError, match=r"method\.lr = 1e\+30"):
        train_alone(context_for(spec, tmp_path))


def test_predictions_that_are_not_finite_are_divergence_too(manifest: Path, tmp_path: Path) -> None:
    """IVON skips steps whose gradient is not finite: the weights stay finite, of no use as they are."""
    spec = digits_spec(manifest, method={**IVON, "lr": 1e25})
    with pytest.raises(DivergedError, match=r"the predictions on val are not finite .* method\.lr = 1e\+25"):
        train_alone(context_for(spec, tmp_path))


@pytest.mark.parametrize(("rho", "num_skipped"), [(0.01, 0), (1e35, 3)])
def test_skipped_steps_are_reported(manifest: Path, tmp_path: Path, rho: float, num_skipped: int) -> None:
    """Weights moved by 1e35 have no finite gradient."""
    method = {"kind": "sam", "lr": 0.01, "rho": rho}
    spec = digits_spec(manifest, method=method, schedule={"epochs": 1, "max_steps_per_epoch": 3})
    assert train_alone(context_for(spec, tmp_path)).metrics["train/skipped_steps"] == num_skipped


def test_step_cap_cuts_epochs(manifest: Path, tmp_path: Path) -> None:
    spec = digits_spec(manifest, schedule={"epochs": 2, "max_steps_per_epoch": 3})
    assert train_alone(context_for(spec, tmp_path)).num_steps == 6


@pytest.mark.slow
def test_resnet50_at_224_px_on_photographs(tmp_path: Path) -> None:
    made = make_clothing(tmp_path / "photos")
    with Clothing1M(made.root) as source:
        build(source, tmp_path / "data", BuildOptions(shard_size=8))
    spec = JobSpec.model_validate(
        {
            "name": "photos",
            "data": {"manifest": str(tmp_path / "data/manifest.json"), "image_size": 224, "batch_size": 4},
            "model": {"arch": "resnet50"},
            "method": {"kind": "ivon", "lr": 0.1},
            "schedule": {"epochs": 1, "max_steps_per_epoch": 2},
            "label_noise": {"num_examples": 4, "num_mc_samples": 2},
            "precision": "bf16",
        }
    )
    result = train_alone(context_for(spec, tmp_path / "run"))
    assert result.num_steps == 2
    (_, _, metrics), *_ = figures(tmp_path / "run")
    assert np.isfinite(metrics["train/loss"])
    report = EvaluationReport.model_validate_json((tmp_path / "run/evaluation/epoch_0001.json").read_bytes())
    assert report.splits["test"].num_examples == 6
