"""Online label smoothing over gloo: all ranks have the same soft labels, those of one process that sees everything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.distributed.online_one_rank import observe_rest
from tests.distributed.test_torchrun import run_under_torchrun
from tests.training import context_for, digits_spec, noisy_digits, train_alone
from trainer import checkpoint
from trainer.target_spec import OnlineTarget
from trainer.targets import build_target, smoothed_labels

WORKER = Path(__file__).with_name("online_one_rank.py")
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def learned(folder: Path, world_size: int, state_file: Path | None = None) -> list[torch.Tensor]:
    """Soft labels of all ranks after two epochs, gone through, or taken up from a state in the midst of the first."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    arguments = [str(world_size), str(folder), *([str(state_file)] if state_file else [])]
    processes = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), *arguments], env=environment)
        for rank in range(world_size)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        soft_CC for rank in range(world_size) for soft_CC in torch.load(folder / f"rank{rank}.pt", weights_only=True)
    ]


def test_ranks_share_what_they_learn_and_others_take_it_up(tmp_path: Path) -> None:
    alone = build_target(OnlineTarget(), 5)
    observe_rest(alone, rank=0, world_size=1)
    expected_CC = alone.state_dict()["soft_CC"]

    two = learned(tmp_path / "two", 2)
    three = learned(tmp_path / "three", 3, tmp_path / "two/state0.pt")
    assert (len(two), len(three)) == (2 * 2, 3)
    for group in (two, three):
        assert all(torch.equal(soft_CC, group[0]) for soft_CC in group)
        torch.testing.assert_close(group[0], expected_CC, rtol=1e-6, atol=1e-9)


@pytest.mark.timeout(600)
def test_a_job_on_two_ranks_learns_the_soft_labels_of_one(tmp_path: Path) -> None:
    spec = digits_spec(
        noisy_digits(tmp_path / "digits"),
        method={"kind": "sgd", "lr": 0.05},
        target={"kind": "online"},
        label_noise={"num_examples": 64},
    )
    spec_file = tmp_path / "job.yaml"
    spec_file.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    torch.set_num_threads(1)
    train_alone(context_for(spec, tmp_path / "one"))
    run_under_torchrun(spec_file, tmp_path / "two")
    one, two = (checkpoint.newest_good([tmp_path / name]) for name in ("one", "two"))
    assert one is not None
    assert two is not None
    one_CC, two_CC = (checkpoint.load(path).target["soft_CC"] for path in (one, two))
    assert (one_CC - smoothed_labels(10, 0.1)).abs().max() > 0.1
    torch.testing.assert_close(two_CC, one_CC, rtol=0, atol=2e-4)
