"""Examples that went bad after the build: listed, tolerated up to a limit, and past it the job fails with the list."""

import json
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import QuarantineLimitError
from tests.training import SGD, context_for, damage, digits_spec, noisy_digits, published, train_alone
from trainer.spec import JobSpec


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spec_for(manifest: Path, max_bad_fraction: float) -> JobSpec:
    data = {
        "manifest": str(manifest),
        "image_size": 8,
        "batch_size": 64,
        "augmentation": "none",
        "max_bad_fraction": max_bad_fraction,
    }
    return digits_spec(manifest, data=data, method=SGD, label_noise={"num_examples": 20})


def listed(run_dir: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run_dir / "quarantine.jsonl").read_text().splitlines()]


def test_within_the_limit_the_job_goes_on_and_lists_them(tmp_path: Path) -> None:
    manifest = noisy_digits(tmp_path / "digits")
    bad_ids = damage(manifest, "train", 12) | damage(manifest, "test", 2)
    result = train_alone(context_for(spec_for(manifest, 0.01), tmp_path / "run"))
    assert result.outcome == "succeeded"
    assert "quarantine.jsonl" in result.files
    rows = listed(tmp_path / "run")
    assert {row["example_id"] for row in rows} == bad_ids
    assert len(rows) == 14
    assert all("differ from their checksum" in row["reason"] for row in rows)
    assert {row["shard"].split("-")[0] for row in rows} == {"train", "test"}


def test_past_the_limit_it_fails_before_it_evaluates_and_leaves_the_list(tmp_path: Path) -> None:
    manifest = noisy_digits(tmp_path / "digits")
    bad_ids = damage(manifest, "train", 13)
    message = r"13 of 1297 examples of 'train' are unreadable; data\.max_bad_fraction = 0\.01 tolerates 12\."
    with pytest.raises(QuarantineLimitError, match=message):
        train_alone(context_for(spec_for(manifest, 0.01), tmp_path / "run"))
    assert {row["example_id"] for row in listed(tmp_path / "run")} == bad_ids
    assert published(tmp_path / "run") == ["quarantine.jsonl"]


def test_a_long_epoch_is_given_up_in_the_middle(tmp_path: Path) -> None:
    manifest = noisy_digits(tmp_path / "digits")
    damage(manifest, "train", 200)
    spec = spec_for(manifest, 0.01)
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"batch_size": 8})})
    with pytest.raises(QuarantineLimitError):
        train_alone(context_for(spec, tmp_path / "run"))
    (entry,) = map(json.loads, (tmp_path / "run" / "journal.jsonl").read_text().splitlines())
    assert entry["file"] == "quarantine.jsonl"
    assert 50 <= entry["step"] < 100  # of 163


def test_what_only_the_record_of_tracked_examples_reads_counts_too(tmp_path: Path) -> None:
    manifest = noisy_digits(tmp_path / "digits")
    damage(manifest, "train", 200)  # some 20 of them in the first two steps
    changes = {"schedule": {"epochs": 1, "max_steps_per_epoch": 2}, "label_noise": {"num_examples": "all"}}
    spec = JobSpec.model_validate({**spec_for(manifest, 0.05).model_dump(), **changes})
    with pytest.raises(QuarantineLimitError, match=r"200 of 1297 examples of 'train' are unreadable"):
        train_alone(context_for(spec, tmp_path / "run"))


def test_each_split_has_its_own_limit(tmp_path: Path) -> None:
    manifest = noisy_digits(tmp_path / "digits")
    damage(manifest, "test", 4)
    with pytest.raises(QuarantineLimitError, match=r"4 of \d+ examples of 'test' are unreadable"):
        train_alone(context_for(spec_for(manifest, 0.01), tmp_path / "run"))


def test_what_an_earlier_attempt_found_stays_listed(tmp_path: Path) -> None:
    manifest = noisy_digits(tmp_path / "digits")
    damage(manifest, "train", 3)
    earlier = {"example_id": "gone", "shard": "train-000000.tar", "reason": "unplugged"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "quarantine.jsonl").write_text(json.dumps(earlier) + "\n")
    train_alone(context_for(spec_for(manifest, 0.01), tmp_path / "run"))
    rows = listed(tmp_path / "run")
    assert len(rows) == 4
    assert earlier in rows
