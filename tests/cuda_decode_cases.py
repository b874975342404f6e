"""What CUDABatchDecoder must do, on a device: the GPU's tests and the CPU's run the same."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from sample_data import encoded, photo

from data_pipeline.errors import BadImageError
from data_pipeline.pictures.crop import Box
from data_pipeline.pictures.cuda_decode import CUDABatchDecoder

SIZE = 32
BOXES = (Box(0, 0, 120, 90), Box(7, 5, 40, 61), Box(100, 20, 20, 30), Box(10, 10, 110, 12))


def decode_boxes(
    device: torch.device, contents: list[bytes | BadImageError], boxes: list[Box]
) -> tuple[torch.Tensor, list[str | None]]:
    """(N, S, S, 3) on the CPU, and what was wrong with each."""
    decoder = CUDABatchDecoder(device, len(contents), SIZE)
    batch = decoder.lend()
    assert batch.device.type == device.type
    problems = decoder.decode_boxes(contents, boxes, batch)
    return batch.cpu(), [None if problem is None else str(problem) for problem in problems]


def check_pixels_are_pillows(device: torch.device) -> None:
    """Boxes of JPEGs, resized with antialiasing."""
    files = [encoded(photo(number), "JPEG") for number in range(len(BOXES))]
    batch, problems = decode_boxes(device, list(files), list(BOXES))
    assert problems == [None] * len(BOXES)
    for data, box, ours in zip(files, BOXES, batch.numpy(), strict=True):
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        with Image.open(io.BytesIO(data)) as image:
            theirs = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, edges))
        assert np.abs(ours.astype(int) - theirs).mean() < 1


def check_one_bad_picture_hurts_no_other(device: torch.device) -> None:
    """A file cut short, one that is no picture, one that was not read, other formats and colours, a box outside."""
    good = [encoded(photo(number), "JPEG") for number in range(2)]
    contents: list[bytes | BadImageError] = [
        good[0],
        good[1][: len(good[1]) // 2],
        b"no picture",
        BadImageError("not read"),
        encoded(photo(3), "PNG"),
        encoded(photo(4, mode="L"), "JPEG"),
        encoded(photo(5, mode="CMYK"), "JPEG"),
        good[1],
        good[1],
    ]
    whole = Box(0, 0, 120, 90)
    batch, problems = decode_boxes(device, contents, [whole] * 8 + [Box(0, 0, 121, 90)])
    assert [problem is None for problem in problems] == [True, False, False, False, True, True, True, True, False]
    assert problems[3] == "not read"
    assert "fewer than the index says" in (problems[8] or "")
    alone, _ = decode_boxes(device, [good[0]], [whole])
    assert (batch[0].int() - alone[0].int()).abs().float().mean() < 1  # by the CPU, as the call met a damaged file
