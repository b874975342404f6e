"""Passes that leave BatchNorm's running statistics alone."""

import pytest
import torch
from torch import nn

from trainer.batch_norm import statistics_kept

IMAGES_BCHW = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("momentum", [0.1, None])
def test_training_normalises_by_the_batch_and_leaves_the_statistics(momentum):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, momentum=momentum))
    model(5 + IMAGES_BCHW)
    before = buffers(model)
    with statistics_kept(model):
        output = model(IMAGES_BCHW)
        model(IMAGES_BCHW * torch.nan)
    torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    for name, buffer in buffers(model).items():
        assert torch.equal(buffer, before[name]), name
    model(IMAGES_BCHW)
    assert model[1].num_batches_tracked == 2


def test_layers_in_eval_mode_still_use_their_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    model(IMAGES_BCHW)
    model[1].eval()
    expected = model(IMAGES_BCHW)
    with statistics_kept(model):
        assert torch.equal(model(IMAGES_BCHW), expected)


def test_layers_are_as_before_even_after_an_exception():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(ZeroDivisionError), statistics_kept(model):
        raise ZeroDivisionError
    assert [layer.track_running_stats for layer in model] == [True, False]
