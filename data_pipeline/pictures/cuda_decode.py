"""JPEGs decoded on a CUDA device by nvJPEG (torchvision's), cropped and resized there, many at a time.

For machines whose CPUs are too few for their GPUs. What nvJPEG is not given (other formats, grey and CMYK JPEGs), and
all of a call in which it met a damaged file, the CPU decodes: it says what is wrong with which. nvJPEG may pass damage
that the CPU's decoder refuses; bytes that changed since the build are found by checksum before either sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from data_pipeline.errors import BadImageError
from data_pipeline.pictures.crop import Box
from data_pipeline.pictures.decode import MAX_PIXELS, BoxDecoder
from data_pipeline.pictures.jpeg import read_header


class CUDABatchDecoder:
    """A BatchDecoder whose batches lie on a CUDA device."""

    def __init__(self, device: torch.device, batch_size: int, image_size: int) -> None:
        """The CPU is a device here, too: torchvision's own decoder then does nvJPEG's part."""
        self._device = device
        self._shape = (batch_size, image_size, image_size, 3)

    @property
    def pictures_per_call(self) -> int:
        return self._shape[0]

    def lend(self) -> Tensor:
        return torch.empty(self._shape, dtype=torch.uint8, device=self._device)

    def decode_boxes(
        self, contents: Sequence[bytes | BadImageError], boxes: Sequence[Box], out_NSSC: Tensor
    ) -> list[BadImageError | None]:
        num_pixels = {number: _num_pixels(*picture) for number, picture in enumerate(zip(contents, boxes, strict=True))}
        done: set[int] = set()
        for numbers in _calls({number: count for number, count in num_pixels.items() if count}):
            pictures = self._decode([content for number in numbers if isinstance(content := contents[number], bytes)])
            for number, pixels_CHW in zip(numbers, pictures, strict=False):
                _resize_box(pixels_CHW, boxes[number], out_NSSC[number])
                done.add(number)
        return [
            None if number in done else self._by_cpu(content, box, out_SSC)
            for number, (content, box, out_SSC) in enumerate(zip(contents, boxes, out_NSSC, strict=True))
        ]

    def _decode(self, files: Sequence[bytes]) -> list[Tensor]:
        """uint8 (3, H, W) of each; none at all, if one of them is damaged: nobody says which."""
        bytes_of_files = [torch.from_numpy(np.frombuffer(file, dtype=np.uint8).copy()) for file in files]
        try:
            pictures: list[Tensor] = decode_jpeg(bytes_of_files, ImageReadMode.RGB, self._device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return []
        return pictures

    def _by_cpu(self, content: bytes | BadImageError, box: Box, out_SSC: Tensor) -> BadImageError | None:
        pixels_SSC: NDArray[np.uint8] = np.empty(tuple(out_SSC.shape), dtype=np.uint8)
        problem = BoxDecoder().try_box(content, box, pixels_SSC)
        if problem is None:
            out_SSC.copy_(torch.from_numpy(pixels_SSC))
        return problem


def _num_pixels(content: bytes | BadImageError, box: Box) -> int:
    """Of a picture that nvJPEG is given; 0: it is not."""
    header = None if isinstance(content, BadImageError) else read_header(content)
    if header is None or header.colours != "YCbCr":
        return 0
    is_inside = box.top + box.height <= header.height and box.left + box.width <= header.width
    count = header.height * header.width
    return count if is_inside and count <= MAX_PIXELS else 0


def _calls(num_pixels: Mapping[int, int]) -> Iterator[list[int]]:
    """The pictures in groups of at most MAX_PIXELS together."""
    group: list[int] = []
    in_group = 0
    for number, count in num_pixels.items():
        if in_group + count > MAX_PIXELS:
            yield group
            group, in_group = [], 0
        group.append(number)
        in_group += count
    if group:
        yield group


def _resize_box(pixels_CHW: Tensor, box: Box, out_SSC: Tensor) -> None:
    """Antialiased bilinear, as Pillow does it."""
    cropped_CHW = pixels_CHW[:, box.top : box.top + box.height, box.left : box.left + box.width]
    size = tuple(out_SSC.shape[:2])
    resized_1CSS = F.interpolate(cropped_CHW[None].float(), size, mode="bilinear", antialias=True)
    out_SSC.copy_(resized_1CSS[0].round_().clamp_(0, 255).permute(1, 2, 0))
