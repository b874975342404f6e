"""Images per second of a core, from shards of JPEG photographs to batches of random crops: ours beside its peers.

    make bench-data                     (two to three minutes; CLOTHING_PHOTOS=tar in Clothing1M's layout)
    python -m benchmarks.data --help    (needs the dependency group `bench`)

Each round lets every contestant run through the same pictures once, in turn, so that what else the machine does falls
on all of them alike; a ratio is taken within a round, and the median over rounds counts. Time is CPU time, of this
process and its workers: on a machine that is shared, the wall clock measures the neighbours. Only for "two cores over
one" is it the wall clock, of two threads on one core and on two; the bare decode in two threads shows what the machine
has to give. Files are in the page cache.

mean_abs_error: grey levels between our crops and Pillow's antialiased ones of the same box, on the photographs and on
pictures of 1500 x 2000 px, where decoding is scaled.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks import data_contestants as contestants
from benchmarks import data_million
from benchmarks import data_pictures as pictures_of
from benchmarks.data_contestants import IMAGE_SIZE, Contestant
from benchmarks.data_pictures import Picture
from data_pipeline.manifest import Manifest
from data_pipeline.pictures import crop, jpeg
from data_pipeline.pictures.decode import BoxDecoder

LARGE_HEIGHT, LARGE_WIDTH = 1500, 2000
NUM_LARGE = 6
PEERS = {"webdataset": "ratio_to_webdataset", "streaming": "ratio_to_streaming", "imagefolder": "ratio_to_imagefolder"}
BARE = "libjpeg-turbo"


class Lane:
    """A contestant and the worker processes that it started, which its first turn shows.

    Workers of one wait while another runs, and some look at the clock a hundred times a second meanwhile: each one's
    time is its own contestant's.
    """

    def __init__(self, contestant: Contestant) -> None:
        before = set(psutil.Process().children(recursive=True))
        self._contestant = contestant
        contestant.epoch()
        self._workers = [child for child in psutil.Process().children(recursive=True) if child not in before]

    def images_per_cpu_second(self) -> float:
        """Of a turn, in which quick ones run through the pictures more than once: clocks of processes are coarse."""
        start = self._cpu_seconds()
        count = sum(self._contestant.epoch() for _ in range(self._contestant.epochs_a_turn))
        return count / (self._cpu_seconds() - start)

    def _cpu_seconds(self) -> float:
        """CPU time that this process and the contestant's workers have used."""
        times = [worker.cpu_times() for worker in self._workers]
        return time.process_time() + sum(used.user + used.system for used in times)


def race(field: dict[str, Contestant], num_rounds: int) -> dict[str, list[float]]:
    """Images per second by round, after a turn in which workers start and files enter the cache."""
    lanes = {name: Lane(contestant) for name, contestant in field.items()}
    rates: dict[str, list[float]] = {name: [] for name in field}
    for _ in range(num_rounds):
        for name, lane in lanes.items():
            rates[name].append(lane.images_per_cpu_second())
    return rates


def median_ratio(over: list[float], under: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


def mean_abs_error(files: list[bytes], crops_each: int) -> float:
    """Grey levels between our random crops and Pillow's."""
    decoder, ours = BoxDecoder(), np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    errors = []
    for place, data in enumerate(files):
        header = jpeg.read_header(data)
        assert header is not None
        with Image.open(io.BytesIO(data)) as image:
            whole = image.convert("RGB")
        for epoch in range(crops_each):
            box = crop.random_box(crop.draws_for(0, epoch, str(place)), header.height, header.width)
            decoder.decode_box(data, box, ours)
            corners = (box.left, box.top, box.left + box.width, box.top + box.height)
            theirs = np.asarray(whole.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=corners))
            errors.append(np.abs(ours.astype(np.int16) - theirs).mean())
    return float(np.mean(errors))


def per_core(pictures: list[Picture], manifest: Manifest, folder: Path, num_rounds: int) -> dict[str, list[float]]:
    """Images per CPU second by round and contestant."""
    pictures_of.write_folder(pictures, folder / "folder")
    pictures_of.write_mds(pictures, folder / "folder", folder / "mds")
    ours = contestants.Hush(manifest, num_threads=1)
    normalised = contestants.Hush(manifest, num_threads=1, normalise=True)
    field: dict[str, Contestant] = {
        "hush": ours,
        "hush_normalised": normalised,
        "webdataset": contestants.stock_webdataset(manifest),
        "streaming": contestants.mosaic_streaming(folder / "mds"),
        "imagefolder": contestants.image_folder(folder / "folder"),
        BARE: contestants.BareDecode(pictures),
    }
    try:
        return race(field, num_rounds)
    finally:
        ours.close()
        normalised.close()


def two_cores_over_one(contestant: Contestant, num_rounds: int) -> float:
    """Median over rounds of the wall-clock rate on two cores over that on one."""
    cores = sorted(os.sched_getaffinity(0))
    contestant.epoch()
    rates = []
    for _ in range(num_rounds):
        for chosen in (cores[:1], cores[:2]):
            _run_on(chosen)
            start = time.perf_counter()
            count = sum(contestant.epoch() for _ in range(contestant.epochs_a_turn))
            rates.append(count / (time.perf_counter() - start))
    _run_on(cores)
    return median_ratio(rates[1::2], rates[::2])


def _run_on(cores: list[int]) -> None:
    """Keep all threads of this process on these cores."""
    for thread in psutil.Process().threads():
        os.sched_setaffinity(thread.id, cores)


def main() -> None:
    """Measure, print a table, and one line of JSON."""
    options = _options()
    torch.set_num_threads(1)
    if options.photos.exists():
        pictures = pictures_of.clothing_photos(options.photos, options.pictures)
        origin = f"photographs of {options.photos.name}"
    else:
        pictures, origin = pictures_of.parts_of_sample_photos(options.pictures), "parts of scikit-learn's photographs"
    size_kb = statistics.mean(len(picture.data) for picture in pictures) / 1000
    print(f"{len(pictures)} {origin}, {size_kb:.0f} KB each; {options.rounds} rounds, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="hush-bench-") as name:
        manifest = pictures_of.write_shards(pictures, Path(name) / "shards")
        hush, bare = contestants.Hush(manifest, num_threads=2), contestants.BareDecode(pictures, num_threads=2)
        scaling, bare_scaling = (two_cores_over_one(one, 2 * options.rounds) for one in (hush, bare))
        hush.close()
        bare.close()
        rates = per_core(pictures, manifest, Path(name), options.rounds)
        million = data_million.measure(Path(name) / "million", pictures[0].data)
    large = pictures_of.mosaics(pictures, NUM_LARGE, LARGE_HEIGHT, LARGE_WIDTH)
    for contestant, values in rates.items():
        ratio = median_ratio(rates["hush"], values)
        print(f"{contestant:16} {statistics.median(values):8.0f} images per CPU second   hush/it {ratio:6.2f}")
    summary = {
        "bench": "data",
        **{key: round(median_ratio(rates["hush"], rates[peer]), 3) for peer, key in PEERS.items()},
        "share_of_bare_decode": round(median_ratio(rates["hush"], rates[BARE]), 3),
        "ratio_to_webdataset_normalised_on_cpu": round(median_ratio(rates["hush_normalised"], rates["webdataset"]), 3),
        "two_cores_over_one": round(scaling, 3),
        "two_cores_over_one_of_bare_decode": round(bare_scaling, 3),
        "mean_abs_error": round(mean_abs_error([picture.data for picture in pictures[:200]], crops_each=2), 3),
        "mean_abs_error_large": round(mean_abs_error(large, crops_each=10), 3),
        **million,
    }
    print(json.dumps(summary))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--photos", type=Path, default=pictures_of.PHOTOS, help="tar or folder in Clothing1M's layout")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
