"""Who races in `benchmarks.data`: each runs through the same pictures, random crops of 224 px, batches of 64.

The peers are what their own documentation shows: Pillow, torchvision's transforms, float32 batches from one worker
process. Ours is `Loader`: uint8 batches from threads; flipping and normalising is the device's work, or, in
"hush_normalised", done here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import simplejpeg
import webdataset
from streaming import StreamingDataset
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.data_pictures import Picture
from data_pipeline.examples import open_split
from data_pipeline.loader import Loader
from data_pipeline.manifest import Manifest
from data_pipeline.pictures.augment import IMAGENET_MEAN, IMAGENET_STD, to_model_input
from data_pipeline.spec import DataSpec

IMAGE_SIZE = 224
BATCH_SIZE = 64
SHUFFLE_BUFFER = 1000


class Contestant(Protocol):
    """Something that delivers pictures."""

    epochs_a_turn: int

    def epoch(self) -> int:
        """Go through all pictures once; how many came."""
        ...


def transform() -> transforms.Compose:
    """What most training scripts do to a picture."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


class InWorker:
    """A peer: batches of (images_BCHW, labels_B) that a worker process makes."""

    epochs_a_turn = 1

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._batches = batches

    def epoch(self) -> int:
        """Once through."""
        return sum(len(images_BCHW) for images_BCHW, _ in self._batches)


def stock_webdataset(manifest: Manifest) -> InWorker:
    """Reads the very shards that ours reads."""
    shards = [str(manifest.root / shard.path) for shard in manifest.split("train").shards]
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(SHUFFLE_BUFFER)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform(), int)
        .batched(BATCH_SIZE)
    )
    return InWorker(webdataset.WebLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True))


class StreamedPictures(StreamingDataset):  # type: ignore[misc]  # untyped
    """MosaicML streaming's way of transforming: in `__getitem__`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(local=str(folder), shuffle=True, batch_size=BATCH_SIZE)
        self._transform = transform()

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        sample = super().__getitem__(at)
        return self._transform(sample["image"].convert("RGB")), sample["label"]


def mosaic_streaming(folder: Path) -> InWorker:
    """Local shards, its default shuffle."""
    return InWorker(DataLoader(StreamedPictures(folder), batch_size=BATCH_SIZE, num_workers=1, persistent_workers=True))


def image_folder(folder: Path) -> InWorker:
    """torchvision's ImageFolder."""
    dataset = ImageFolder(str(folder), transform())
    return InWorker(DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=1, persistent_workers=True))


class Hush:
    """Our loader."""

    def __init__(self, manifest: Manifest, *, num_threads: int, normalise: bool = False) -> None:
        spec = DataSpec(manifest=str(manifest.root / "manifest.json"), image_size=IMAGE_SIZE, num_threads=num_threads)
        table = open_split(manifest, "train")
        self._loader = Loader(table, spec, rank=0, world_size=1, seed=0, shuffle=True, batch_size=BATCH_SIZE)
        self._normalise = normalise
        self.epochs_a_turn = 1 if normalise else 4
        self._epoch = 0

    def epoch(self) -> int:
        """Once through, each time in another order with other crops."""
        self._epoch += 1
        count = 0
        for batch in self._loader.epoch(self._epoch):
            if self._normalise:
                to_model_input(batch.images_BHWC, batch.flip_B, "cpu")
            count += int(batch.valid_B.sum())
        return count

    def close(self) -> None:
        """Stop the threads."""
        self._loader.close()


class BareDecode:
    """libjpeg-turbo alone: files that lie in memory, whole pictures, one after the other into the same memory; each
    thread takes its share of them."""

    epochs_a_turn = 4

    def __init__(self, pictures: list[Picture], num_threads: int = 1) -> None:
        self._files = [picture.data for picture in pictures]
        shapes = [simplejpeg.decode_jpeg_header(data)[:2] for data in self._files]
        largest = max(height * width * 3 for height, width in shapes)
        self._buffers = [bytearray(largest) for _ in range(num_threads)]
        self._threads = ThreadPoolExecutor(num_threads)

    def epoch(self) -> int:
        """Once through."""
        return sum(self._threads.map(self._decode, range(len(self._buffers))))

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown()

    def _decode(self, number: int) -> int:
        files = self._files[number :: len(self._buffers)]
        for data in files:
            simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=self._buffers[number])
        return len(files)
