"""Label noise that steps tell, over gloo: what ranks add up is what one process finds with the whole batches."""

from pathlib import Path

import pytest
import torch

from tests.distributed.ranks import run_ranks
from tests.distributed.training_noise_one_rank import NUM_TRAIN, TRACKED


def told(folder: Path, world_size: int) -> list[dict[str, torch.Tensor]]:
    """What each rank holds at the epoch's end."""
    folder.mkdir()
    return run_ranks("training_noise_one_rank.py", world_size, folder)


@pytest.mark.slow
def test_two_ranks_find_what_one_does(tmp_path: Path) -> None:
    (one,), (two, other) = told(tmp_path / "one", 1), told(tmp_path / "two", 2)
    counts, sums = one["table"][:, :-1], one["table"][:, -1]
    assert counts.sum() == two["table"][:, :-1].sum() == NUM_TRAIN
    assert (two["table"][:, :-1] - counts).abs().sum() <= 2  # rounding may carry one example over an edge
    torch.testing.assert_close(two["table"][:, -1], sums)
    assert len(one["tracked"]) == len(TRACKED)
    torch.testing.assert_close(two["tracked"], one["tracked"])
    assert (one["tracked"] > 1e-3).all()
    assert not other["table"].any()
    assert other["tracked"].isnan().all()
