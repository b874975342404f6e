"""Online label smoothing through the loop: its soft labels move, count each example once and survive a cut."""

from pathlib import Path

import pytest
import torch

from tests.integration.trainer.test_resume import assert_same_run, cut_off
from tests.training import IVON, context_for, digits_spec, noisy_digits, train_alone
from trainer import checkpoint
from trainer.checkpoint import Checkpoint
from trainer.spec import JobSpec
from trainer.targets import smoothed_labels

INITIAL_CC = smoothed_labels(10, 0.1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def newest(run_dir: Path) -> Checkpoint:
    found = checkpoint.newest_good([run_dir])
    assert found is not None
    return checkpoint.load(found)


def online_spec(manifest: Path, every_steps: int | None) -> JobSpec:
    """Two MC samples a step: each example must be counted once all the same."""
    return digits_spec(
        manifest,
        method={**IVON, "num_mc_samples": 2, "antithetic": True},
        target={"kind": "online"},
        schedule={"epochs": 3},
        fault_tolerance={"checkpoint_every_steps": every_steps},
        label_noise={"every_epochs": 1, "num_examples": 64, "num_mc_samples": 2},
    )


def test_soft_labels_move_and_a_cut_inside_an_epoch_changes_nothing(tmp_path: Path) -> None:
    spec = online_spec(noisy_digits(tmp_path / "digits"), every_steps=8)
    train_alone(context_for(spec, tmp_path / "through"))
    cut_off(tmp_path / "cut", spec, 1)

    inside = newest(tmp_path / "cut")
    assert (inside.loader["epoch"], inside.loader["examples_delivered"]) == (2, 19 * spec.data.batch_size)
    soft_CC, sums_CC = inside.target["soft_CC"], inside.target["sums_CC"]
    torch.testing.assert_close(soft_CC.sum(dim=1), torch.ones(10, dtype=torch.float64))
    assert (soft_CC - INITIAL_CC).abs().max() > 0.1
    _, num_correct, num_seen = inside.meters["sums"].tolist()
    assert 0 < num_correct < num_seen == 19 * 64
    assert sums_CC.sum().item() == pytest.approx(num_correct, rel=1e-6)  # each adds a p that sums to 1

    train_alone(context_for(spec, tmp_path / "cut"))
    assert_same_run(tmp_path / "through", tmp_path / "cut")
    through, cut = newest(tmp_path / "through").target, newest(tmp_path / "cut").target
    assert torch.equal(through["soft_CC"], cut["soft_CC"])
    assert not torch.equal(through["soft_CC"], soft_CC)
    assert not through["sums_CC"].any()


def test_another_target_is_refused_when_taken_up(tmp_path: Path) -> None:
    spec = online_spec(noisy_digits(tmp_path / "digits"), every_steps=None)
    cut_off(tmp_path / "run", spec, 1)
    hard = JobSpec.model_validate({**spec.model_dump(), "target": {"kind": "hard"}})
    with pytest.raises(ValueError, match=r"target\.kind was 'online' when this run began"):
        train_alone(context_for(hard, tmp_path / "run"))
