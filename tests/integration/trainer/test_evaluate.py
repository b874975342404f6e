"""Evaluation by the weights and averaged over weight samples, against predictions made by hand."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from data_pipeline.pictures.augment import to_model_input
from tests.training import ALONE, IVON, SGD, Watcher, context_for, digits_spec, noisy_digits, train_alone
from trainer.calibration import PredictionCounts
from trainer.evaluate import due_draws, due_splits, log_mean_softmax, num_statistics_batches, refresh_statistics
from trainer.job_data import open_data
from trainer.label_noise.estimators import posterior_of
from trainer.optim.noise import DrawKey, Stream
from trainer.run import Position, Run, build_run, resume
from trainer.run_schema import EvaluationReport
from trainer.spec import JobSpec

WIDE = {**IVON, "lr": 1.0, "hess_init": 0.5, "ess": 300}
NUM_SAMPLES = 5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_digits(tmp_path_factory.mktemp("digits"))


def report_of(run_dir: Path, epoch: int) -> EvaluationReport:
    return EvaluationReport.model_validate_json((run_dir / f"evaluation/epoch_{epoch:04d}.json").read_bytes())


@contextmanager
def taken_up(spec: JobSpec, run_dir: Path) -> Iterator[Run]:
    """A finished run, its posterior with it."""
    with open_data(spec, ALONE) as data:
        run = build_run(context_for(spec, run_dir), ALONE, data, Watcher())
        resume(run)
        yield run


def test_averaged_is_the_mean_of_the_samples_softmax(manifest: Path, tmp_path: Path) -> None:
    spec = digits_spec(manifest, method=WIDE, evaluation={"num_mc_samples": NUM_SAMPLES})
    train_alone(context_for(spec, tmp_path))
    report = report_of(tmp_path, 2)
    with taken_up(spec, tmp_path) as run, torch.no_grad():
        batches = list(run.data.evaluated["test"].loader.epoch(0))
        images = torch.cat([to_model_input(b.images_BHWC, b.flip_B, ALONE.device)[b.valid_B] for b in batches])
        labels_B = torch.cat([b.clean_labels_B[b.valid_B] for b in batches])
        run.network.eval()
        mean_BC = run.network(images).softmax(1)
        samples = []
        for i in range(NUM_SAMPLES):
            with posterior_of(run.learner.optimizer).perturbed(DrawKey(spec.seed, Stream.PREDICTION, 2, i)):
                samples.append(run.network(images).softmax(1))
    for p_BC, found in ((mean_BC, report.splits["test"]), (torch.stack(samples).mean(0), report.averaged["test"])):
        expected = PredictionCounts(10)
        expected.add(p_BC.log(), labels_B)
        for name, value in expected.evaluation("test", "clean").metrics().items():
            assert getattr(found, name.rpartition("/")[2]) == pytest.approx(value, rel=1e-4), name
    assert abs(report.averaged["test"].nll - report.splits["test"].nll) > 2e-3
    assert (report.splits["test"].predictor, report.splits["test"].num_mc_samples) == ("mean", None)
    assert (report.averaged["test"].predictor, report.averaged["test"].num_mc_samples) == ("averaged", NUM_SAMPLES)


def test_chunks_do_not_matter(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All examples see the same weights, however many are predicted at once."""
    spec = digits_spec(manifest, method=WIDE, schedule={"epochs": 1}, evaluation={"num_mc_samples": 3})
    train_alone(context_for(spec, tmp_path / "one"))
    monkeypatch.setattr("trainer.evaluate.MAX_CHUNK_BYTES", 0)
    train_alone(context_for(spec, tmp_path / "many"))
    one, many = (report_of(tmp_path / name, 1).averaged["test"] for name in ("one", "many"))
    assert one.nll == pytest.approx(many.nll, rel=1e-5)
    assert one.confusion == many.confusion


def test_averaged_after_the_last_epoch_and_as_often_as_asked(manifest: Path, tmp_path: Path) -> None:
    asked = {"default": {}, "every": {"average_every_epochs": 1}, "none": {"num_mc_samples": 0}}
    found = {}
    for name, evaluation in asked.items():
        spec = digits_spec(manifest, schedule={"epochs": 2, "max_steps_per_epoch": 2}, evaluation=evaluation)
        result = train_alone(context_for(spec, tmp_path / name))
        found[name] = [sorted(report_of(tmp_path / name, epoch).averaged) for epoch in (1, 2)]
        assert ("test_clean_averaged/nll" in result.metrics) == (name != "none")
    assert found == {
        "default": [[], ["test", "val"]],
        "every": [["val"], ["test", "val"]],
        "none": [[], []],
    }


def test_test_is_predicted_after_the_last_epoch_and_after_each_where_there_is_no_val(manifest: Path) -> None:
    with open_data(digits_spec(manifest), ALONE) as data:
        assert due_splits(data, is_last=False) == ("val",)
        assert due_splits(data, is_last=True) == ("val", "test")
        no_val = replace(data, evaluated={"test": data.evaluated["test"]})
        assert due_splits(no_val, is_last=False) == due_splits(no_val, is_last=True) == ("test",)


def test_a_point_has_nothing_to_average(manifest: Path, tmp_path: Path) -> None:
    spec = digits_spec(manifest, method=SGD, schedule={"epochs": 1, "max_steps_per_epoch": 2})
    result = train_alone(context_for(spec, tmp_path))
    assert report_of(tmp_path, 1).averaged == {}
    assert {name.split("/")[0] for name in result.metrics} >= {"val_clean", "test_clean"}
    assert not any("averaged" in name for name in result.metrics)


def test_draws_are_of_this_epoch_and_stream() -> None:
    spec = JobSpec.model_validate(
        {
            "name": "draws",
            "data": {"manifest": "m.json"},
            "schedule": {"epochs": 7},
            "evaluation": {"num_mc_samples": 2, "average_every_epochs": 3},
            "seed": 9,
        }
    )
    due = [epoch for epoch in range(1, 8) if due_draws(spec, epoch)]
    assert due == [3, 6, 7]
    assert due_draws(spec, 6) == (DrawKey(9, Stream.PREDICTION, 6, 0), DrawKey(9, Stream.PREDICTION, 6, 1))


def test_the_log_of_an_average_is_finite_where_it_would_round_to_0() -> None:
    logits = [torch.tensor([[0.0, 2000.0]]), torch.tensor([[0.0, 1000.0]])]
    found_BC = log_mean_softmax(logits)
    assert found_BC[0, 0].item() == pytest.approx(-1000 - torch.tensor(2.0).log().item())
    assert found_BC[0, 1].item() == pytest.approx(0.0)
    logits = [torch.randn(6, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    expected_BC = torch.stack([part.double().softmax(1) for part in logits]).mean(0)
    torch.testing.assert_close(log_mean_softmax(logits).exp(), expected_BC)


# ----------------------------------------------------------------------------------------------------------- BatchNorm


def test_batchnorms_statistics_are_those_at_the_mean_unless_told_otherwise(manifest: Path, tmp_path: Path) -> None:
    data = {"manifest": str(manifest), "image_size": 16, "batch_size": 256, "augmentation": "none"}
    for reestimate in (True, False):
        spec = digits_spec(
            manifest,
            data=data,
            model={"arch": "resnet18"},
            method={**WIDE, "lr": 0.1},
            schedule={"epochs": 1, "max_steps_per_epoch": 1},
            label_noise={"num_examples": 10, "num_mc_samples": 2},
            evaluation={"num_mc_samples": 2, "reestimate_batchnorm": reestimate},
        )
        train_alone(context_for(spec, tmp_path / str(reestimate)))
        with taken_up(spec, tmp_path / str(reestimate)) as run, torch.no_grad():
            trained = {name: value.clone() for name, value in run.network.named_buffers() if "running" in name}
            layers = [module for module in run.network.modules() if isinstance(module, _BatchNorm)]
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None
            run.network.train()
            for batch in islice(run.data.train.loader.epoch(1), 5):  # all whole ones; the sixth has 17 pictures
                run.network(to_model_input(batch.images_BHWC, batch.flip_B, ALONE.device))
            by_hand = dict(run.network.named_buffers())
            same = all(torch.allclose(value, by_hand[name], rtol=1e-4, atol=1e-5) for name, value in trained.items())
            assert same == reestimate
            for layer in layers:
                layer.momentum = 0.3
            refresh_statistics(run, Position(epoch=1))
            assert {layer.momentum for layer in layers} == {0.3}
    reports = [json.loads((tmp_path / name / "evaluation/epoch_0001.json").read_text()) for name in ("True", "False")]
    assert reports[0]["splits"]["test"]["nll"] != reports[1]["splits"]["test"]["nll"]


@pytest.mark.parametrize(
    ("num_train", "batch_size", "expected"), [(1_000_000, 256, 8), (1_000_000, 300, 7), (1297, 256, 5), (17, 256, 1)]
)
def test_statistics_are_of_whole_batches(num_train: int, batch_size: int, expected: int) -> None:
    assert num_statistics_batches(num_train, batch_size) == expected
