"""The real photographs in Clothing1M's layout, where they are at hand; unit tests do the same on a small set."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.building.index_shards import IndexOptions, index_shards
from data_pipeline.check import check
from data_pipeline.examples import open_split
from data_pipeline.loader import Loader
from data_pipeline.manifest import Manifest
from data_pipeline.reading.reader import ShardReader
from data_pipeline.sources.clothing1m import Clothing1M, example_id_of
from data_pipeline.sources.webdataset import LabelPlace, LabelRules
from data_pipeline.spec import DataSpec
from data_pipeline.summary import summarise

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "clothing-photos.tar"

pytestmark = pytest.mark.skipif(not PHOTOS.exists(), reason=f"the clothing photographs are not at {PHOTOS}")


def build_photos(out: Path) -> Manifest:
    with Clothing1M(PHOTOS) as source:
        return build(source, out, BuildOptions()).manifest


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return build_photos(tmp_path_factory.mktemp("photos"))


def test_sizes_labels_and_bytes(photos):
    sizes = {name: (split.num_examples, split.num_listed) for name, split in photos.splits.items()}
    assert sizes == {"train": (3718, 3718), "val": (497, 497), "test": (746, 746)}
    assert photos.skipped == ()
    assert len(photos.classes) == 14
    assert photos.splits["train"].num_clean_labels == 558
    with tarfile.open(PHOTOS) as tar:
        originals = {
            example_id_of(member.name.partition("/")[2])[0]: tar.extractfile(member).read()
            for member in tar
            if member.name.endswith(".jpg")
        }
    num_compared = 0
    for name in photos.splits:
        table = open_split(photos, name)
        reader = ShardReader(table)
        for row, example_id in enumerate(table.example_ids):
            assert reader.read(row) == originals[example_id]
            num_compared += 1
        reader.close()
    assert num_compared == len(originals) == 4961


def test_building_twice_gives_the_same_checksums(photos, tmp_path):
    again = build_photos(tmp_path)
    assert again.to_bytes() == photos.to_bytes()
    assert check(again) == []


def test_notes_and_summary_tell_of_both_labels(photos):
    with Clothing1M(PHOTOS) as source:
        sizes, left_out, both = source.notes
    assert sizes.startswith("lists 14 classes, 3,718 noisy_train, 558 clean_train, 497 clean_val, 746 clean_test; ")
    assert left_out.startswith("0 of 3,718")
    assert both.startswith("558 training examples have a clean label too, which differs in 120; 0 clean training")
    summary = summarise(open_split(photos, "train"))
    assert (summary.num_wrong, sum(pair.count for pair in summary.confusion)) == (120, 558)
    assert summary.height.smallest >= 256


def test_shards_read_as_somebody_elses_give_the_same_index(photos, tmp_path):
    shutil.copytree(photos.root, tmp_path / "copy", ignore=shutil.ignore_patterns("*.arrow", "manifest.json"))
    rules = LabelRules(LabelPlace.parse("cls"), LabelPlace.parse("json:clean_label"), photos.classes)
    indexed = index_shards(tmp_path / "copy", IndexOptions("photos", rules, num_processes=2)).manifest
    for name in photos.splits:
        ours, theirs = open_split(photos, name), open_split(indexed, name)
        assert [shard.sha256 for shard in theirs.shard_files] == [shard.sha256 for shard in ours.shard_files]
        assert list(theirs.example_ids) == list(ours.example_ids)
        for column in ("offsets", "lengths", "checksums", "heights", "widths", "given_labels", "clean_labels"):
            np.testing.assert_array_equal(getattr(theirs, column), getattr(ours, column))


def test_every_photograph_decodes(photos):
    table = open_split(photos, "train")
    spec = DataSpec(manifest="manifest.json", image_size=96, max_bad_fraction=0)
    with Loader(table, spec, rank=0, world_size=1, seed=0, shuffle=True, batch_size=64) as loader:
        rows = np.concatenate([batch.indices_B[batch.valid_B].numpy() for batch in loader.epoch(1)])
    assert sorted(rows.tolist()) == list(range(3718))
    assert loader.quarantine == []
