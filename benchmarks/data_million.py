"""What a rank pays for 1,000,000 examples in 1,000 shards, before the first picture and after a restart.

    python -m benchmarks.data_million FOLDER     (in a process of its own, on what `measure` has put there)

The index files are those of a real data set; the shards are not: each holds one picture, and all of its entries point
to it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch
import xxhash

from data_pipeline import plan
from data_pipeline.examples import INDEX_SCHEMA, ExampleTable, open_split
from data_pipeline.loader import Loader
from data_pipeline.manifest import MANIFEST_FILE, FileEntry, Manifest, Recipe, Shard, Split
from data_pipeline.pictures import jpeg
from data_pipeline.spec import DataSpec

NUM_SHARDS, SHARD_SIZE = 1000, 1000
NUM_CLASSES = 14
BATCH_SIZE = 256
RESUME_AT = 0.6
REPEATS = 5


def measure(folder: Path, picture: bytes) -> dict[str, float]:
    """Write the data set, and have another process open and load it."""
    folder.mkdir()
    write(folder / "one", picture, num_shards=1)
    write(folder / "million", picture, NUM_SHARDS)
    command = [sys.executable, "-m", "benchmarks.data_million", str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def write(folder: Path, picture: bytes, num_shards: int) -> None:
    """A data set of small files and their indexes."""
    folder.mkdir()
    header = jpeg.read_header(picture)
    assert header is not None
    labels_N = np.random.default_rng(0).integers(0, NUM_CLASSES, num_shards * SHARD_SIZE)
    shards = []
    for number in range(num_shards):
        rows = np.arange(number * SHARD_SIZE, (number + 1) * SHARD_SIZE)
        columns = {
            "example_id": [f"{row % 10}-{row % 97:02d}-{row * 7919 % 10**10:010d}_{row:010d}" for row in rows.tolist()],
            "suffix": ["jpg"] * SHARD_SIZE,
            "offset": np.zeros(SHARD_SIZE, np.int64),
            "length": np.full(SHARD_SIZE, len(picture)),
            "xxh3": np.full(SHARD_SIZE, xxhash.xxh3_64_intdigest(picture), np.uint64),
            "height": np.full(SHARD_SIZE, header.height, np.int32),
            "width": np.full(SHARD_SIZE, header.width, np.int32),
            "ordinal": rows,
            "given_label": labels_N[rows],
            "clean_label": np.full(SHARD_SIZE, -1),
        }
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
            writer.write_table(pa.table(columns, schema=INDEX_SCHEMA))
        index = _entry(folder / f"train-{number:06d}.index.arrow", sink.getvalue())
        shard = _entry(folder / f"train-{number:06d}.tar", picture)
        shards.append(Shard(**shard.model_dump(), num_examples=SHARD_SIZE, index=index))
    counts = np.bincount(labels_N, minlength=NUM_CLASSES).tolist()
    split = Split(
        num_examples=len(labels_N),
        num_listed=len(labels_N),
        class_counts=tuple(counts),
        num_clean_labels=0,
        shards=tuple(shards),
    )
    recipe = Recipe(source="million", listing_sha256="0" * 64, seed=0, shard_size=SHARD_SIZE, corruption=None)
    names = tuple(f"class-{label:02d}" for label in range(NUM_CLASSES))
    Manifest(name="million", classes=names, splits={"train": split}, recipe=recipe).save(folder)


def _entry(path: Path, content: bytes) -> FileEntry:
    path.write_bytes(content)
    return FileEntry(path=path.name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def seconds_to_first_batch(table: ExampleTable, spec: DataSpec, share_done: float) -> float:
    """From nothing but the table to a batch in hand, as a restarted rank does."""
    start = time.perf_counter()
    with Loader(table, spec, rank=0, world_size=1, seed=0, shuffle=True, batch_size=BATCH_SIZE) as loader:
        next(loader.epoch(1, int(len(table) * share_done)))
        return time.perf_counter() - start


def main() -> None:
    """Print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_million")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    path = folder / "million" / MANIFEST_FILE
    torch.set_num_threads(1)
    spec = {order: DataSpec.model_validate({"manifest": str(path), "order": order}) for order in ("global", "windowed")}
    open_split(Manifest.load(folder / "one" / MANIFEST_FILE), "train")  # what libraries load at their first use
    before = _own_megabytes()
    start = time.perf_counter()
    manifest = Manifest.load(path)
    table = open_split(manifest, "train")
    open_s = time.perf_counter() - start
    rows = plan.Rows("million", len(table.shard_files), table.shard_indices, table.given_labels)
    order_s = {name: _median_seconds(_planner(rows, of_order)) for name, of_order in spec.items()}
    order_N = plan.epoch_order(rows, spec["global"], 0, 1)
    memory_mb = _own_megabytes() - before
    assert len(order_N) == NUM_SHARDS * SHARD_SIZE
    firsts = [
        [seconds_to_first_batch(table, spec["global"], share) for share in (0, RESUME_AT)] for _ in range(REPEATS)
    ]
    first_s, resumed_s = (statistics.median(column) for column in zip(*firsts, strict=True))
    figures = {
        "million_open_s": open_s,
        "million_plan_global_s": order_s["global"],
        "million_plan_windowed_s": order_s["windowed"],
        "million_memory_mb": memory_mb,
        "million_first_batch_s": first_s,
        "million_resumed_batch_s": resumed_s,
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


def _planner(rows: plan.Rows, spec: DataSpec) -> Callable[[], object]:
    return lambda: plan.epoch_order(rows, spec, 0, 1)


def _median_seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _own_megabytes() -> float:
    """Memory of this process alone, without what its libraries share with others."""
    return float(psutil.Process().memory_full_info().uss) / 2**20


if __name__ == "__main__":
    main()
