"""Shards, index and manifest: complete, reproducible, readable by others, never half there."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset
from sample_data import build_clothing, build_digits, make_tar

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.check import check
from data_pipeline.examples import open_split
from data_pipeline.label_corruption import corrupt
from data_pipeline.manifest import Manifest
from data_pipeline.reading.reader import ShardReader
from data_pipeline.sources.base import SourceExample
from data_pipeline.sources.clothing1m import Clothing1M, example_id_of
from data_pipeline.sources.digits import Digits
from data_pipeline.spec import PairflipCorruption, SymmetricCorruption


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read_all(table) -> dict[str, bytes]:
    reader = ShardReader(table)
    try:
        return {table.example_ids[row]: reader.read(row) for row in range(len(table))}
    finally:
        reader.close()


def test_every_image_is_byte_equal_and_every_label_is_there(built_clothing):
    made, manifest = built_clothing
    held_out = {*made.val, *made.test}
    expected = {"train": [key for key in made.train if key not in held_out], "val": made.val, "test": made.test}
    for split, keys in expected.items():
        table = open_split(manifest, split)
        assert read_all(table) == {example_id_of(key)[0]: made.image(key).read_bytes() for key in keys}
        in_order = table.select(np.argsort(table.ordinals))
        assert in_order.example_ids.tolist() == [example_id_of(key)[0] for key in keys]
        given = made.noisy if split == "train" else made.clean
        assert in_order.given_labels.tolist() == [given[key] for key in keys]
        assert in_order.clean_labels.tolist() == [made.clean.get(key, -1) for key in keys]
        assert manifest.splits[split].num_clean_labels == int((table.clean_labels >= 0).sum())
        assert manifest.splits[split].class_counts == tuple(np.bincount(table.given_labels, minlength=3).tolist())


def test_examples_are_in_a_seeded_random_order(built_clothing, clothing, tmp_path):
    ordinals = open_split(built_clothing[1], "train").ordinals.tolist()
    other = open_split(build_clothing(clothing, tmp_path / "other", BuildOptions(seed=1, shard_size=8)), "train")
    assert sorted(ordinals) == sorted(other.ordinals.tolist()) == list(range(20))
    assert ordinals != list(range(20))
    assert ordinals != other.ordinals.tolist()


def test_stock_webdataset_reads_the_shards(built_clothing):
    made, manifest = built_clothing
    table = open_split(manifest, "train")
    urls = [str(manifest.root / shard.path) for shard in table.shard_files]
    assert len(urls) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves each shard to the garbage collector
        raw = list(webdataset.WebDataset(urls, shardshuffle=False))
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
        gc.collect()
    assert [sample["__key__"] for sample in samples] == table.example_ids.tolist()
    assert [sample["cls"] for sample in samples] == table.given_labels.tolist()
    images = {example_id_of(key)[0]: made.image(key).read_bytes() for key in made.train}
    for row, (sample, undecoded) in enumerate(zip(samples, raw, strict=True)):
        assert undecoded["jpg"] == images[sample["__key__"]]
        assert sample["json"] == {
            "given_label": table.given_labels[row],
            "clean_label": None if table.clean_labels[row] < 0 else table.clean_labels[row],
            "ordinal": table.ordinals[row],
            "file": next(key for key in made.train if example_id_of(key)[0] == sample["__key__"]),
        }


def test_shards_are_plain_ustar_without_dates_and_owners(built_clothing):
    for path in built_clothing[1].root.glob("*.tar"):
        assert path.read_bytes()[257:265] == b"ustar\x0000"
        assert path.stat().st_size % 10240 == 0
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert member.name.count(".") == 1


def test_width_and_height_are_those_of_the_picture(built_clothing):
    table = open_split(built_clothing[1], "val")
    numbers = [int(example_id.rsplit(",")[0].rsplit("-")[-1]) for example_id in table.example_ids]
    assert table.heights.tolist() == [100 + number for number in numbers]
    assert table.widths.tolist() == [140 - number for number in numbers]


def test_building_twice_gives_the_same_bytes(clothing, tmp_path):
    tar = make_tar(clothing.root, tmp_path / "clothing.tar")
    for source, out in ((clothing.root, "a"), (clothing.root, "b"), (tar, "c")):
        with Clothing1M(source) as opened:
            build(opened, tmp_path / out, BuildOptions(shard_size=8))
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b") == content_of(tmp_path / "c")
    assert not (tmp_path / "a" / ".building").exists()


def test_building_into_the_same_folder_again_changes_nothing(clothing, tmp_path):
    out = tmp_path / "out"
    build_clothing(clothing, out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.*")}
    with Clothing1M(clothing.root) as source:
        result = build(source, out, BuildOptions(shard_size=8))
    assert not result.is_new
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_building_again_repairs_a_damaged_shard(clothing, tmp_path):
    manifest = build_clothing(clothing, tmp_path / "out")
    (tmp_path / "out" / "val-000000.tar").write_bytes(b"damaged")
    assert check(manifest)
    assert check(build_clothing(clothing, tmp_path / "out")) == []


def test_another_data_set_is_only_replaced_by_force(clothing, tmp_path):
    out = tmp_path / "out"
    build_digits(out)
    before = content_of(out)
    with pytest.raises(ValueError, match="holds another build of data set 'digits'; choose another folder, or --force"):
        build_clothing(clothing, out)
    assert content_of(out) == before
    with Clothing1M(clothing.root) as source:
        manifest = build(source, out, BuildOptions(force=True)).manifest
    assert check(manifest) == []
    assert {path.name for path in out.glob("*.tar")} == {"train-000000.tar", "val-000000.tar", "test-000000.tar"}


def test_shards_that_no_build_has_made_are_never_lost(tmp_path):
    (tmp_path / "train-000002.tar").write_bytes(b"of somebody else")
    (tmp_path / "train-000007.tar").write_bytes(b"in nobody's way")
    with pytest.raises(ValueError, match=r"train-000002\.tar is there already; choose another folder, or --force"):
        build_digits(tmp_path)
    assert (tmp_path / "train-000002.tar").read_bytes() == b"of somebody else"
    manifest = build_digits(tmp_path, BuildOptions(shard_size=500, force=True))
    recipe = manifest.recipe.model_copy(update={"owns_shards": False})
    manifest.model_copy(update={"recipe": recipe}).save(tmp_path)  # as if they had only been indexed
    before = content_of(tmp_path)
    for options in (BuildOptions(shard_size=500), BuildOptions(force=True)):
        with pytest.raises(ValueError, match="holds shards that no build has made; choose another folder"):
            build_digits(tmp_path, options)
    assert content_of(tmp_path) == before


def test_changed_pictures_under_unchanged_lists_are_another_data_set(clothing, tmp_path):
    before = build_clothing(clothing, tmp_path / "out")
    clothing.image(clothing.val[0]).write_bytes(clothing.image(clothing.val[3]).read_bytes())
    with pytest.raises(ValueError, match="holds another build"):
        build_clothing(clothing, tmp_path / "out")
    assert check(before) == []
    replaced = build_clothing(clothing, tmp_path / "out", BuildOptions(shard_size=8, force=True))
    assert check(replaced) == []
    assert replaced.digest != before.digest


def test_another_list_of_what_was_skipped_is_another_data_set(clothing, tmp_path):
    clothing.image(clothing.val[0]).unlink()
    before = build_clothing(clothing, tmp_path / "out")
    clothing.image(clothing.val[0]).write_bytes(b"no picture")
    with pytest.raises(ValueError, match="holds another build"):
        build_clothing(clothing, tmp_path / "out")
    assert check(before) == []


def test_a_broken_manifest_is_only_replaced_by_force(clothing, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="no data set manifest"):
        build_clothing(clothing, out)
    assert check(build_clothing(clothing, out, BuildOptions(force=True))) == []


def test_missing_and_unreadable_pictures_are_listed(clothing, tmp_path):
    missing, garbage, empty = clothing.train[1], clothing.train[9], clothing.val[0]
    clothing.image(missing).unlink()
    clothing.image(garbage).write_bytes(b"<html>404</html>")
    clothing.image(empty).write_bytes(b"")
    manifest = build_clothing(clothing, tmp_path / "out")
    assert {(example.example_id, example.split, example.reason) for example in manifest.skipped} == {
        (example_id_of(missing)[0], "train", f"{missing}: No such file or directory"),
        (example_id_of(garbage)[0], "train", f"{garbage}: not a known image format (16 bytes)"),
        (example_id_of(empty)[0], "val", f"{empty}: not a known image format (0 bytes)"),
    }
    assert (manifest.splits["train"].num_examples, manifest.splits["train"].num_listed) == (18, 20)
    assert len(open_split(manifest, "val")) == 4


def test_a_split_without_readable_pictures_is_refused(clothing, tmp_path):
    for key in clothing.test:
        clothing.image(key).unlink()
    with pytest.raises(ValueError, match="split 'test' of 'clothing1m': none of its 6 examples can be used"):
        build_clothing(clothing, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_with_too_many_unreadable_pictures_there_is_no_data_set(clothing, tmp_path):
    clothing.image(clothing.test[3]).write_bytes(b"no picture")
    options = BuildOptions(shard_size=8, max_bad_fraction=0.16)
    lost = example_id_of(clothing.test[3])[0]
    with pytest.raises(
        ValueError,
        match="1 of 6 examples of split 'test' cannot be used; max_bad_fraction 0.16 tolerates 0: mend them, or leave"
        rf" them out with --max-bad-fraction 0.17. The first: {lost}: {clothing.test[3]}: not a known image format",
    ):
        build_clothing(clothing, tmp_path / "out", options)
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = build_clothing(clothing, tmp_path / "out", dataclasses.replace(options, max_bad_fraction=0.17))
    assert [example.example_id for example in manifest.skipped] == [lost]


def test_examples_without_a_usable_label_or_listed_twice_are_skipped_and_listed(clothing, tmp_path):
    unlabelled, beyond, twice, odd = clothing.train[1], clothing.train[9], clothing.val[2], clothing.test[0]
    del clothing.noisy[unlabelled]
    clothing.noisy[beyond] = 3
    clothing.val.append(twice)
    clothing.clean[odd] = 77
    clothing.write_lists()
    corruption = SymmetricCorruption(rate=0.5)
    with pytest.raises(ValueError, match="2 of 20 examples of split 'train' cannot be used"):
        build_clothing(clothing, tmp_path / "out", BuildOptions(shard_size=8))
    assert not (tmp_path / "out").exists()
    plain = build_clothing(clothing, tmp_path / "out")
    assert [(example.example_id, example.label, example.reason) for example in plain.skipped] == [
        (example_id_of(unlabelled)[0], None, f"{unlabelled}: has no label"),
        (example_id_of(beyond)[0], None, f"{beyond}: label 3 must be 0 to 2"),
        (example_id_of(twice)[0], clothing.clean[twice], f"{twice}: its id is that of another example"),
        (example_id_of(odd)[0], None, f"{odd}: label 77 must be 0 to 2"),
    ]
    assert {name: (split.num_examples, split.num_listed) for name, split in plain.splits.items()} == {
        "train": (18, 20), "val": (5, 6), "test": (5, 6),
    }  # fmt: skip
    assert check(plain) == []
    options = BuildOptions(shard_size=8, corruption=corruption, max_bad_fraction=1)
    at_build = open_split(build_clothing(clothing, tmp_path / "noisy", options), "train")
    at_load = open_split(plain, "train", corruption)
    assert at_build.given_labels.tolist() == at_load.given_labels.tolist()
    held_out = {*clothing.val, *clothing.test}
    labels = [clothing.noisy[key] for key in clothing.train if key not in {*held_out, unlabelled, beyond}]
    in_order = at_load.select(np.argsort(at_load.ordinals))
    assert in_order.given_labels.tolist() == corrupt(np.array(labels), 3, corruption).tolist()


def test_noise_at_build_equals_noise_at_load_even_if_pictures_are_lost(clothing, tmp_path):
    corruption = SymmetricCorruption(rate=0.5, seed=3)
    whole = open_split(build_clothing(clothing, tmp_path / "whole"), "train", corruption)
    clothing.image(clothing.train[2]).unlink()
    plain = build_clothing(clothing, tmp_path / "plain")
    noisy = build_clothing(
        clothing, tmp_path / "noisy", BuildOptions(shard_size=8, corruption=corruption, max_bad_fraction=1)
    )
    at_load, at_build = open_split(plain, "train", corruption), open_split(noisy, "train")
    by_id = dict(zip(whole.example_ids, whole.given_labels, strict=True))
    for table in (at_load, at_build):
        assert len(table) == 19
        assert all(by_id[i] == label for i, label in zip(table.example_ids, table.given_labels, strict=True))
    assert open_split(noisy, "val").given_labels.tolist() == open_split(plain, "val").given_labels.tolist()
    with pytest.raises(ValueError, match="was built with 'symmetric' noise already"):
        open_split(noisy, "train", corruption)
    with pytest.raises(ValueError, match="corruption is for the split 'train'"):
        open_split(plain, "val", corruption)


def test_digits_are_the_real_scans_and_keep_their_clean_labels(tmp_path):
    corruption = PairflipCorruption(rate=0.3, seed=0)
    manifest = build_digits(tmp_path, BuildOptions(corruption=corruption))
    assert {name: split.num_examples for name, split in manifest.splits.items()} == {
        "train": 1297,
        "val": 200,
        "test": 300,
    }
    train = open_split(manifest, "train")
    in_order = train.select(np.argsort(train.ordinals))
    assert in_order.given_labels.tolist() == corrupt(in_order.clean_labels, 10, corruption).tolist()
    assert 0.25 < (train.given_labels != train.clean_labels).mean() < 0.35
    ids = [example_id for split in manifest.splits for example_id in open_split(manifest, split).example_ids]
    assert sorted(ids) == [f"digit-{number:04d}" for number in range(1797)]


def test_sources_whose_pictures_are_no_files_say_nothing_of_files(tmp_path):
    with tarfile.open(build_digits(tmp_path).root / "val-000000.tar") as tar:
        assert set(json.load(tar.extractfile(tar.getnames()[2]))) == {"given_label", "clean_label", "ordinal"}


@pytest.mark.parametrize(("out", "message"), [
    ("file", "file' is no folder; give a folder, which is made if need be"),
    ("file/out", "file/out' cannot be a folder: .*/file is none; give a folder"),
    ("locked/out", "locked/out': .*/locked cannot be written to; choose another folder"),
])  # fmt: skip
def test_where_nothing_can_be_written_is_said_before_anything_is_read(tmp_path, monkeypatch, out, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "locked")
    monkeypatch.setattr(Digits, "examples", lambda _: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=message):
        build_digits(tmp_path / out)


@pytest.mark.parametrize("example_id", ["", "a.b", "a/b", "ä", "x" * 81, "a b"])
def test_ids_that_would_not_survive_a_tar_or_a_url_are_refused(tmp_path, example_id):
    class Renamed(Digits):
        def examples(self):
            yield SourceExample(example_id, "0", "png", "train", 0, 0)

    with pytest.raises(ValueError, match="must be 1 to 80 letters"):
        build(Renamed(), tmp_path, BuildOptions())


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("", "ab", "name '' of a data set must have 1 to 200 characters"),
        ("x" * 201, "ab", "must have 1 to 200 characters"),
        ("set", "a", "must have at least two classes of different names, not 'a'"),
        ("set", "aba", "must have at least two classes of different names, not 'a, b, a'"),
        ("set", ("a", "\udcff"), r"name '\\udcff' is not UTF-8"),
    ],
)
def test_names_that_cannot_be_are_refused_before_anything_is_read(tmp_path, name, classes, message):
    source = Digits()
    source.name, source.classes = name, tuple(classes)
    with pytest.raises(ValueError, match=message) as error:
        build(source, tmp_path / "out", BuildOptions())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_source_without_training_examples_is_refused(tmp_path):
    class Untrained(Digits):
        def examples(self):
            yield SourceExample("a", "0", "png", "val", 0, 0)

    with pytest.raises(ValueError, match="'digits' lists no example to train on"):
        build(Untrained(), tmp_path, BuildOptions())


def test_a_folder_is_built_by_one_process_at_a_time(tmp_path):
    def build_inside(_):
        with pytest.raises(ValueError, match="is being built by another process"):
            build_digits(tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(Digits(), tmp_path, BuildOptions(), build_inside)


def test_manifest_on_disk_has_no_absolute_path_or_time(built_clothing):
    manifest = built_clothing[1]
    text = (manifest.root / "manifest.json").read_text()
    assert str(manifest.root) not in text
    assert Manifest.load(manifest.root / "manifest.json").to_bytes() == text.encode()
    assert list(json.loads(text)) == ["format", "name", "classes", "splits", "skipped", "recipe"]
