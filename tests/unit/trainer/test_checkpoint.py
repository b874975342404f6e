"""Reading a checkpoint that this version did not write."""

import dataclasses

import pytest
import torch

from trainer.checkpoint import Checkpoint, load


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
