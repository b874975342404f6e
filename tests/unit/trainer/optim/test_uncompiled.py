"""SGD and AdamW without torch's compiler around their step: the same numbers, bit for bit."""

from __future__ import annotations

import pytest
import torch

from trainer.optim import uncompiled


@pytest.mark.parametrize(
    ("ours", "torchs", "options"),
    [
        (uncompiled.SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (uncompiled.AdamW, torch.optim.AdamW, {}),
    ],
)
def test_steps_like_torchs(
    ours: type[torch.optim.Optimizer], torchs: type[torch.optim.Optimizer], options: dict[str, float]
) -> None:
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    pairs = [
        (kind([weight], lr=0.1, fused=True, **options), weight)
        for kind, weight in zip((ours, torchs), weights, strict=True)
    ]
    for _ in range(3):
        for optimizer, weight in pairs:
            optimizer.zero_grad()
            (weight**2).sum().backward()
            assert optimizer.step(lambda: torch.tensor(1.0)) == 1.0
            assert torch.is_grad_enabled()
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], start)
    keys = [{key for state in optimizer.state.values() for key in state} for optimizer, _ in pairs]
    assert keys[0] == keys[1]
