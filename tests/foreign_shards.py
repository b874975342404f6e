"""WebDataset shards as other people write them."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import Path

import webdataset
from sample_data import encoded, photo

from data_pipeline.building import index_shards as indexing
from data_pipeline.building.index_shards import IndexOptions
from data_pipeline.examples import open_split
from data_pipeline.manifest import Manifest
from data_pipeline.reading.reader import ShardReader
from data_pipeline.sources.webdataset import LabelPlace, LabelRules

CLASSES = ("cat", "dog", "owl")
RULES = LabelRules(LabelPlace.parse("cls"), None, CLASSES)
OPTIONS = IndexOptions("pets", RULES, num_processes=1)


def index_shards(*arguments) -> Manifest:
    return indexing.index_shards(*arguments).manifest


def tolerant(**changes) -> IndexOptions:
    return dataclasses.replace(OPTIONS, max_bad_fraction=0.9, **changes)


def write_shards(folder: Path, **shards: list[dict]) -> dict[str, dict]:
    """By webdataset's own writer; samples by key."""
    folder.mkdir()
    for name, samples in shards.items():
        with webdataset.TarWriter(str(folder / f"{name}.tar")) as writer:
            for sample in samples:
                writer.write(sample)
    return {sample["__key__"]: sample for samples in shards.values() for sample in samples}


def sample(number: int, label: int | None = None, **members) -> dict:
    return {
        "__key__": f"{number:06d}",
        "jpg": encoded(photo(number, 40 + number, 30)),
        "cls": number % 3 if label is None else label,
        **members,
    }


def write_members(path: Path, *members: tuple[str, bytes], fmt: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=fmt) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def read_all(manifest: Manifest, split: str) -> dict[str, bytes]:
    table = open_split(manifest, split)
    reader = ShardReader(table)
    try:
        found = reader.read_many(range(len(table)))
        return {table.example_ids[row]: data for row, data in enumerate(found)}
    finally:
        reader.close()
