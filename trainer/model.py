"""ModelSpec -> network: torchvision's ResNets with a head for our classes, or a small CNN for small pictures."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

import torch
from torch import nn

from trainer.spec import ModelSpec

SMALL_CNN_WIDTHS = (32, 64, 128)
NORM_GROUPS = 8


def build_model(spec: ModelSpec, num_classes: int, *, seed: int) -> nn.Module:
    """The network with float32 weights on the CPU. The same seed gives the same weights; torch's RNG is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match spec.arch:
            case "small_cnn":
                model: nn.Module = SmallCNN(num_classes)
            case "resnet18" | "resnet34" | "resnet50":
                model = _resnet(spec.arch, num_classes, imagenet=spec.weights == "imagenet")
            case _:
                assert_never(spec.arch)
    if spec.weights not in ("none", "imagenet"):
        _load_weights(model, Path(spec.weights))
    return model


class SmallCNN(nn.Sequential):
    """Three 3×3 convolutions with GroupNorm, ReLU and pooling, global average, linear head: 94k parameters.

    GroupNorm rather than BatchNorm: it keeps no running statistics, so the network at the posterior mean is exactly the
    network that is evaluated, and a picture's output depends on neither its batch nor the number of ranks.
    """

    def __init__(self, num_classes: int) -> None:
        layers: list[nn.Module] = []
        num_in = 3
        for width in SMALL_CNN_WIDTHS:
            layers += [
                nn.Conv2d(num_in, width, kernel_size=3, padding=1, bias=False),
                nn.GroupNorm(NORM_GROUPS, width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            num_in = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(num_in, num_classes))


def _resnet(arch: str, num_classes: int, *, imagenet: bool) -> nn.Module:
    # Imported here: torchvision takes seconds (it pulls in torch's compiler), and small_cnn does without.
    from torchvision.models import get_model  # noqa: PLC0415 (see above)

    try:
        model: nn.Module = get_model(arch, weights="DEFAULT" if imagenet else None)
    except OSError as error:  # no network, no room
        raise ValueError(f"model.weights = 'imagenet': cannot be downloaded: {error}") from None
    assert isinstance(model.fc, nn.Linear)
    model.fc = nn.Linear(model.fc.in_features, num_classes)
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict; a head of another number of classes stays random, anything else that differs is an error."""
    what = f"model.weights = {str(path)!r}"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its reader and unpickler meet
        raise ValueError(f"{what}: cannot be read as a state dict: {error}") from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{what}: must hold a state dict, names to tensors")
    own = model.state_dict()
    head = list(own)[-2:]
    fitting = {name: value for name, value in weights.items() if name not in head or value.shape == own[name].shape}
    try:
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{what}: does not fit the architecture: {error}") from None
    wrong = sorted(set(missing) - set(head) | set(unexpected))
    if wrong:
        raise ValueError(f"{what}: does not fit the architecture; missing or unknown: {', '.join(wrong[:5])}")
