"""JPEGs decoded by nvJPEG; the CPU's tests run the same cases with torchvision's own decoder."""

import pytest
import torch
from cuda_decode_cases import check_one_bad_picture_hurts_no_other, check_pixels_are_pillows

if not torch.cuda.is_available():
    pytest.skip(
        "needs a GPU (unit/data_pipeline/test_cuda_decode.py runs the same on the CPU)", allow_module_level=True
    )
DEVICE = torch.device("cuda", 0)


def test_pixels_are_pillows():
    check_pixels_are_pillows(DEVICE)


def test_one_bad_picture_hurts_no_other():
    check_one_bad_picture_hurts_no_other(DEVICE)
