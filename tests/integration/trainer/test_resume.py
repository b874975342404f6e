"""A run that was cut off goes on as if it had not been: the same figures, bit for bit, and each epoch once."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from data_pipeline.spec import SymmetricCorruption
from tests.sample_data import build_digits
from tests.training import (
    ALONE,
    BSAM,
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
from trainer import checkpoint, loop, pulse
from trainer.attempt import run_attempt
from trainer.errors import AbortedError, SpecRejectedError
from trainer.run_schema import Progress
from trainer.spec import JobSpec


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _asked_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of digits may be over within the half second after which it asks whether to stop."""
    monkeypatch.setattr(pulse, "STOP_CHECK_INTERVAL_S", 0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def through(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of `three_epochs` that nothing cut off; only to be read."""
    folder = tmp_path_factory.mktemp("through")
    train_alone(context_for(three_epochs(manifest), folder))
    return folder


def three_epochs(manifest: Path) -> JobSpec:
    return digits_spec(manifest, schedule={"epochs": 3})


class CutOffError(Exception):
    """Stands for a kill at this moment: nothing is cleaned up by the run."""


class CutAfter(Watcher):
    """Cuts the run off when so many epochs are finished."""

    def __init__(self, num_epochs: int) -> None:
        super().__init__()
        self.num_epochs = num_epochs

    def progress(self, progress: Progress) -> None:
        if progress.phase == "recording" and progress.epoch > self.num_epochs:
            raise CutOffError


def cut_off(run_dir: Path, spec: object, num_epochs: int, **more: object) -> None:
    with pytest.raises(CutOffError):
        loop.train(context_for(spec, run_dir, **more), ALONE, CutAfter(num_epochs))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "model.pt", weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    assert figures(one) == figures(other)
    assert published(one) == published(other)
    for name in published(one):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("method", [IVON, SGD, BSAM], ids=["ivon", "sgd", "bsam"])
@pytest.mark.parametrize("every_steps", [None, 8], ids=["at_an_epoch", "inside_an_epoch"])
def test_goes_on_bit_for_bit(
    manifest: Path, tmp_path: Path, method: dict[str, object], every_steps: int | None
) -> None:
    spec = digits_spec(
        manifest,
        method=method,
        schedule={"epochs": 3, "warmup_epochs": 1},
        fault_tolerance={"checkpoint_every_steps": every_steps},
    )
    train_alone(context_for(spec, tmp_path / "through"))
    cut_off(tmp_path / "cut", spec, 1)
    newest = checkpoint.newest_good([tmp_path / "cut"])
    assert newest is not None
    expected = 0 if every_steps is None else 19 * spec.data.batch_size
    assert checkpoint.load(newest).loader["examples_delivered"] == expected
    watcher = Watcher()
    train_alone(context_for(spec, tmp_path / "cut"), watcher)

    assert [summary.epoch for summary in watcher.before] == [1]
    assert [summary.epoch for summary in watcher.epochs] == [2, 3]
    assert_same_run(tmp_path / "through", tmp_path / "cut")


def test_next_attempt_takes_over_the_folder_of_the_one_before(manifest: Path, through: Path, tmp_path: Path) -> None:
    spec = three_epochs(manifest)
    cut_off(tmp_path / "attempt-1", spec, 1)
    before = sorted(path.relative_to(tmp_path) for path in (tmp_path / "attempt-1").rglob("*"))
    resume_dirs = (str(tmp_path / "attempt-1"),)
    train_alone(context_for(spec, tmp_path / "attempt-2", attempt=2, resume_dirs=resume_dirs))
    assert before == sorted(path.relative_to(tmp_path) for path in (tmp_path / "attempt-1").rglob("*"))
    shutil.rmtree(tmp_path / "attempt-1")
    assert_same_run(through, tmp_path / "attempt-2")


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_torn_checkpoint_is_passed_over(manifest: Path, through: Path, tmp_path: Path, harm: str) -> None:
    spec = three_epochs(manifest)
    cut_off(tmp_path / "cut", spec, 2)
    newest = checkpoint.newest_good([tmp_path / "cut"])
    assert newest is not None
    content = bytearray(newest.read_bytes())
    if harm == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    watcher = Watcher()
    train_alone(context_for(spec, tmp_path / "cut"), watcher)
    assert [summary.epoch for summary in watcher.before] == [1]
    assert_same_run(through, tmp_path / "cut")


def test_stopped_run_can_be_taken_up(manifest: Path, through: Path, tmp_path: Path) -> None:
    spec = three_epochs(manifest)
    stopped = train_alone(context_for(spec, tmp_path / "cut"), Watcher(stop_after_epoch=1))
    assert stopped.outcome == "stopped"
    assert train_alone(context_for(spec, tmp_path / "cut")).outcome == "succeeded"
    assert_same_run(through, tmp_path / "cut")


@pytest.mark.parametrize("phase", ["evaluating", "recording"])
def test_run_stopped_amid_the_end_of_an_epoch_can_be_taken_up(
    manifest: Path, through: Path, tmp_path: Path, phase: str
) -> None:
    spec = three_epochs(manifest)
    for cut in ("cut", "again"):  # a second time at the same place, out of the checkpoint of the first
        context = context_for(spec, tmp_path / cut, resume_dirs=(str(tmp_path / "cut"),))
        watcher = Watcher(stop_in=phase)
        stopped = train_alone(context, watcher)
        assert (stopped.outcome, stopped.num_epochs, watcher.epochs) == ("stopped", 0, [])
        assert not list((tmp_path / cut).glob("evaluation/*"))
    context = context_for(spec, tmp_path / "rest", resume_dirs=(str(tmp_path / "again"),))
    assert train_alone(context).outcome == "succeeded"
    assert_same_run(through, tmp_path / "rest")


def test_aborted_run_leaves_nothing_more_and_can_be_taken_up(manifest: Path, through: Path, tmp_path: Path) -> None:
    spec = three_epochs(manifest)
    with pytest.raises(AbortedError):
        train_alone(context_for(spec, tmp_path / "cut"), Watcher(stop_after_epoch=1, last_order="abort"))
    last = checkpoint.newest_good([tmp_path / "cut"])
    assert last is not None
    assert checkpoint.load(last).step % 21 == 0, "the last one is that of an epoch's end"
    assert not (tmp_path / "cut/model.pt").exists()
    assert train_alone(context_for(spec, tmp_path / "cut")).outcome == "succeeded"
    assert_same_run(through, tmp_path / "cut")


def test_what_cannot_be_trained_is_told_from_what_fails_later(manifest: Path, tmp_path: Path) -> None:
    train_alone(context_for(digits_spec(manifest), tmp_path))
    data = {"manifest": str(manifest), "image_size": 8, "batch_size": 32}
    with pytest.raises(SpecRejectedError, match="batch_size was 64"):
        run_attempt(context_for(digits_spec(manifest, data=data), tmp_path), ALONE)


def test_finished_run_is_only_summed_up_again(manifest: Path, tmp_path: Path) -> None:
    spec = digits_spec(manifest)
    first = train_alone(context_for(spec, tmp_path))
    watcher = Watcher()
    again = train_alone(context_for(spec, tmp_path), watcher)
    assert watcher.epochs == []
    assert again.metrics == first.metrics


def test_other_data_is_refused(manifest: Path, tmp_path: Path) -> None:
    train_alone(context_for(digits_spec(manifest), tmp_path / "run"))
    other = tmp_path / "other"
    shutil.copytree(manifest.parent, other)
    changed = json.loads((other / "manifest.json").read_text())
    changed["name"] = "renamed"
    (other / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"digest was .* when this run began"):
        train_alone(context_for(digits_spec(other / "manifest.json"), tmp_path / "run"))


@pytest.mark.parametrize(("field", "change"), [("batch_size", {"batch_size": 32}), ("seed", {"seed": 1})])
def test_another_order_is_refused(manifest: Path, tmp_path: Path, field: str, change: dict[str, int]) -> None:
    spec = digits_spec(manifest, schedule={"epochs": 1})
    train_alone(context_for(spec, tmp_path))
    data = spec.data.model_copy(update=change if field == "batch_size" else {})
    other = spec.model_copy(update={"data": data, "seed": change.get("seed", spec.seed)})
    with pytest.raises(ValueError, match=f"{field} was .* when this run began"):
        train_alone(context_for(other, tmp_path))


def test_other_label_noise_is_refused(tmp_path: Path) -> None:
    build_digits(tmp_path / "clean")
    spec = digits_spec(tmp_path / "clean" / "manifest.json", schedule={"epochs": 1})
    train_alone(context_for(spec, tmp_path / "run"))
    data = spec.data.model_copy(update={"corruption": SymmetricCorruption(rate=0.1)})
    with pytest.raises(ValueError, match=r"labels_xxh3 was .* when this run began"):
        train_alone(context_for(spec.model_copy(update={"data": data}), tmp_path / "run"))


def test_only_two_checkpoints_are_kept(manifest: Path, tmp_path: Path) -> None:
    train_alone(context_for(digits_spec(manifest, fault_tolerance={"checkpoint_every_steps": 5}), tmp_path))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
