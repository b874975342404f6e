"""Unreadable examples over two ranks: each is counted once, and the ranks give up together."""

import json
from pathlib import Path

import pytest

from tests.distributed.ranks import run_ranks
from tests.training import SGD, damage, digits_spec, noisy_digits


@pytest.mark.slow
def test_ranks_count_each_example_once_and_give_up_together(tmp_path: Path) -> None:
    manifest = noisy_digits(tmp_path / "digits")
    bad_ids = damage(manifest, "train", 12)
    jobs = []
    for limit in (12, 11):
        data = {
            "manifest": str(manifest),
            "image_size": 8,
            "batch_size": 64,
            "augmentation": "none",
            "max_bad_fraction": (limit + 0.5) / 1297,
        }
        spec = digits_spec(
            manifest, data=data, method=SGD, schedule={"epochs": 3}, label_noise={"num_examples": 20}
        )  # in three epochs, most are found by both ranks
        jobs.append((spec.model_dump(mode="json"), f"limit-{limit}"))
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))

    ends, others = run_ranks("quarantine_one_rank.py", 2, tmp_path)
    assert ends == others
    within, past = ends
    assert within == "63 steps"
    assert past.startswith("12 of 1297 examples of 'train' are unreadable; ")
    for name in ("limit-12", "limit-11"):
        rows = [json.loads(line) for line in (tmp_path / name / "quarantine.jsonl").read_text().splitlines()]
        assert {row["example_id"] for row in rows} == bad_ids
        assert len(rows) == 12
