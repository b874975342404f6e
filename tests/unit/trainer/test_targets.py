"""Targets against torch's own losses and against the formula."""

import pytest
import torch
import torch.nn.functional as F

from trainer.target_spec import HardTarget, SmoothedTarget
from trainer.targets import build_target

LOGITS_BC = 3 * torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
LABELS_B = torch.arange(20) % 7


def test_hard_target_is_cross_entropy():
    loss_B = build_target(HardTarget(), 7)(LOGITS_BC, LABELS_B)
    assert torch.equal(loss_B, F.cross_entropy(LOGITS_BC, LABELS_B, reduction="none"))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.9])
def test_smoothed_target_is_the_formula_and_torchs(rate):
    loss_B = build_target(SmoothedTarget(rate=rate), 7)(LOGITS_BC, LABELS_B)
    smoothed_BC = (1 - rate) * F.one_hot(LABELS_B, 7) + rate / 7
    torch.testing.assert_close(loss_B, -(smoothed_BC * LOGITS_BC.log_softmax(1)).sum(1))
    torch.testing.assert_close(
        loss_B, F.cross_entropy(LOGITS_BC, LABELS_B, reduction="none", label_smoothing=rate), rtol=1e-5, atol=1e-6
    )


def test_losses_of_bf16_logits_are_float32():
    for spec in (HardTarget(), SmoothedTarget(rate=0.1)):
        assert build_target(spec, 7)(LOGITS_BC.bfloat16(), LABELS_B).dtype == torch.float32


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="num_classes 1"):
        build_target(HardTarget(), 1)
