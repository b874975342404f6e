"""Jobs with `noise: per_rank` through the trainer: equal weights and posterior on all ranks, and exact resuming."""

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.ranks import run_ranks
from tests.training import IVON, digits_spec, noisy_digits


@pytest.mark.slow
def test_ranks_with_their_own_noise_end_with_equal_weights(tmp_path: Path) -> None:
    manifest = noisy_digits(tmp_path / "digits")
    own = {**IVON, "noise": "per_rank", "num_mc_samples": 2, "antithetic": True}
    runs: list[tuple[dict[str, object], int, str, str | None]] = [
        (own, 2, "through", None),
        (own, 1, "halves", None),
        (own, 2, "halves", None),
        ({**own, "noise": "shared"}, 2, "shared", None),
        (own, 2, "cut", "evaluating"),
        (own, 2, "cut", "recording"),
        (own, 2, "cut", None),
    ]
    jobs = []
    for method, epochs, name, stop_in in runs:
        schedule = {
            "epochs": epochs,
            "decay": "step",
            "max_steps_per_epoch": 6,
        }  # a constant rate: one schedule for all
        spec = digits_spec(manifest, method=method, schedule=schedule, label_noise={"num_examples": 64})
        jobs.append((spec.model_dump(mode="json"), name, stop_in))
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))

    (first, num_epochs_found), (second, _) = run_ranks("job_one_rank.py", 2, tmp_path)
    assert num_epochs_found == [0, 0, 1, 0, 0, 0, 0]
    assert are_equal(first, second)
    through, _, halves, shared, _, _, cut = first
    assert are_equal(through, halves)
    assert are_equal(through, cut)
    assert not are_equal(through, shared)


def are_equal(a: object, b: object) -> bool:
    """Whether trees of tensors have the same bits."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    assert isinstance(a, list | tuple)
    assert isinstance(b, list | tuple)
    return len(a) == len(b) and all(are_equal(x, y) for x, y in zip(a, b, strict=True))
