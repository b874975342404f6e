"""Bytes to model input, against torchvision's own transforms."""

from __future__ import annotations

import torch
from torchvision.transforms.v2 import functional as transforms

from data_pipeline.pictures.augment import IMAGENET_MEAN, IMAGENET_STD, to_model_input


def test_it_is_flip_scale_and_normalise():
    images_BHWC = torch.randint(0, 256, (4, 10, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flip_B = torch.tensor([True, False, True, False])
    result = to_model_input(images_BHWC, flip_B, "cpu")
    assert result.shape == (4, 3, 10, 12)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    for image_HWC, flip, ours in zip(images_BHWC, flip_B, result, strict=True):
        image = transforms.to_dtype(image_HWC.permute(2, 0, 1), torch.float32, scale=True)
        expected = transforms.normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD))
        torch.testing.assert_close(ours, transforms.horizontal_flip(expected) if flip else expected)


def test_the_batch_stays_as_it_was():
    images_BHWC = torch.randint(0, 256, (2, 5, 5, 3), dtype=torch.uint8)
    before = images_BHWC.clone()
    to_model_input(images_BHWC, torch.tensor([True, True]), torch.device("cpu"))
    assert torch.equal(images_BHWC, before)
