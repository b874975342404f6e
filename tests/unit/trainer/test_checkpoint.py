"""Which checkpoints are kept, and reading one that this version did not write."""

import dataclasses

import pytest
import torch

from trainer.checkpoint import Checkpoint, load, newest_good, save


def checkpoint_at(step):
    loader = {"digest": "d", "order": "global", "seed": 0, "epoch": 1, "examples_delivered": step}
    empty = {field.name: {} for field in dataclasses.fields(Checkpoint)}
    return Checkpoint(**{**empty, "loader": loader, "step": step, "journal_bytes": 0})


def test_the_newest_two_are_kept(tmp_path):
    paths = [save(tmp_path, checkpoint_at(step)) for step in (5, 10, 15)]
    assert sorted((tmp_path / "checkpoints").iterdir()) == paths[1:]


@pytest.mark.parametrize("num_good", [0, 1])
def test_torn_ones_do_not_take_the_place_of_those_that_follow(tmp_path, num_good):
    """A run that had to go back saves what torn checkpoints of later steps seem to outdate."""
    good = [save(tmp_path, checkpoint_at(5)) for _ in range(num_good)]
    torn = [save(tmp_path, checkpoint_at(step)) for step in (90, 100)[num_good:]]
    for path in torn:
        path.write_bytes(path.read_bytes()[:50])
    again = save(tmp_path, checkpoint_at(10))
    assert newest_good([tmp_path]) == again
    assert sorted((tmp_path / "checkpoints").iterdir()) == [*good, again]


def test_an_entry_that_is_missing_is_named(tmp_path):
    names = [field.name for field in dataclasses.fields(Checkpoint)]
    torch.save({name: {} for name in names if name != "target"}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"old\.pt .* lacks 'target'"):
        load(tmp_path / "old.pt")


def test_an_entry_that_nobody_reads_is_named(tmp_path):
    names = [field.name for field in dataclasses.fields(Checkpoint)]
    torch.save({name: {} for name in [*names, "scaler"]}, tmp_path / "new.pt")
    with pytest.raises(ValueError, match=r"new\.pt .* has 'scaler' too many"):
        load(tmp_path / "new.pt")
