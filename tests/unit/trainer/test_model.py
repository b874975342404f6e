"""Networks from their spec."""

from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.model import build_model
from trainer.spec import ModelSpec


def small(weights: str = "none", *, num_classes: int = 10, seed: int = 0) -> nn.Module:
    return build_model(ModelSpec(arch="small_cnn", weights=weights), num_classes, seed=seed)


def test_seed_decides_the_weights_and_leaves_torch_alone() -> None:
    before = torch.random.get_rng_state()
    first, same, other = small(), small(), small(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = list(zip(first.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_small_cnn_takes_small_pictures(size: int) -> None:
    model = small()
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) < 100_000


def test_small_cnn_output_does_not_depend_on_the_batch() -> None:
    model, images_BCHW = small(), torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(model(images_BCHW)[:1], model(images_BCHW[:1]))


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_resnets_get_a_head_of_our_size(arch: str) -> None:
    model = build_model(ModelSpec.model_validate({"arch": arch}), 14, seed=0)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 14)


def test_weights_come_from_a_file_but_for_a_head_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    source = small(seed=7)
    torch.save(source.state_dict(), path)
    same = small(str(path))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), same.parameters(), strict=True))
    fewer = small(str(path), num_classes=3)
    assert torch.equal(fewer.state_dict()["0.weight"], source.state_dict()["0.weight"])
    assert fewer(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def test_file_that_is_no_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"model\.weights = .*cannot be read as a state dict"):
        small(str(path))
    torch.save({"state": 3}, path)
    with pytest.raises(ValueError, match="must hold a state dict"):
        small(str(path))
    torch.save({"0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not fit the architecture"):
        small(str(path))
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="missing or unknown"):
        small(str(path))


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(small(), path)  # a whole module is pickled code
    with pytest.raises(ValueError, match="cannot be read as a state dict"):
        small(str(path))


def test_imagenet_weights_that_cannot_be_had_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))  # no folder can be made in it
    with pytest.raises(ValueError, match=r"model\.weights = 'imagenet': cannot be downloaded"):
        build_model(ModelSpec(arch="resnet18", weights="imagenet"), 2, seed=0)
