"""Indexing shards that somebody else wrote: found, checked, read back, and left as they were."""

from __future__ import annotations

import dataclasses
import io
import re
import tarfile

import numpy as np
import pytest
from foreign_shards import (
    CLASSES,
    OPTIONS,
    index_shards,
    read_all,
    sample,
    tolerant,
    write_members,
    write_shards,
)
from sample_data import build_clothing, encoded, photo

from data_pipeline.building import index_shards as indexing
from data_pipeline.building.index_shards import IndexOptions
from data_pipeline.check import check
from data_pipeline.examples import open_split
from data_pipeline.label_corruption import corrupt
from data_pipeline.manifest import Manifest
from data_pipeline.sources.webdataset import LabelPlace, LabelRules
from data_pipeline.spec import SymmetricCorruption
from data_pipeline.storage.local import LocalStorage


def test_other_peoples_shards_read_back_and_stay_as_they_are(tmp_path):
    folder = tmp_path / "set"
    samples = write_shards(
        folder,
        **{"set-train-0": [sample(n) for n in range(5)], "set-train-1": [sample(n) for n in range(5, 8)]},
        **{"set-val-0": [sample(n) for n in range(8, 10)], "set-test-0": [sample(10)]},
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = index_shards(folder, OPTIONS)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert check(Manifest.load(folder / "manifest.json"), decode_pictures=True) == []
    assert (manifest.name, manifest.classes, manifest.skipped) == ("pets", CLASSES, ())
    assert not manifest.recipe.owns_shards
    assert {name: split.num_examples for name, split in manifest.splits.items()} == {"train": 8, "val": 2, "test": 1}
    for split, numbers in (("train", range(8)), ("val", range(8, 10)), ("test", [10])):
        keys = [f"{number:06d}" for number in numbers]
        assert read_all(manifest, split) == {key: samples[key]["jpg"] for key in keys}
        table = open_split(manifest, split)
        assert list(table.example_ids) == keys
        assert table.ordinals.tolist() == list(range(len(keys)))
        assert table.given_labels.tolist() == [number % 3 for number in numbers]
        assert table.clean_labels.tolist() == [-1] * len(keys)
        assert table.heights.tolist() == [40 + number for number in numbers]
        assert manifest.splits[split].class_counts == tuple(np.bincount(table.given_labels, minlength=3).tolist())


def test_any_number_of_processes_gives_the_same_manifest(tmp_path):
    write_shards(tmp_path / "set", **{f"{n}": [sample(10 * n + row) for row in range(4)] for n in range(3)})
    alone = index_shards(tmp_path / "set", OPTIONS)
    told: list[tuple[int, int]] = []
    options = dataclasses.replace(OPTIONS, num_processes=2)
    again = index_shards(tmp_path / "set", options, lambda done, total: told.append((done, total)))
    assert again.to_bytes() == alone.to_bytes()
    total = sum(path.stat().st_size for path in (tmp_path / "set").glob("*.tar"))
    assert told[-1] == (total, total)


def test_our_own_shards_can_be_indexed_anew(clothing, tmp_path):
    """As anybody else's: the same pictures at the same places, with the same labels."""
    built = build_clothing(clothing, tmp_path / "out")
    expected = {split: open_split(built, split) for split in built.splits}
    (tmp_path / "out" / "manifest.json").unlink()
    rules = LabelRules(LabelPlace.parse("json:given_label"), LabelPlace.parse("json:clean_label"), built.classes)
    indexed = index_shards(tmp_path / "out", IndexOptions("again", rules, num_processes=1))
    for split, table in expected.items():
        again = open_split(indexed, split)
        assert list(again.example_ids) == list(table.example_ids)
        for column in ("offsets", "lengths", "checksums", "heights", "widths", "given_labels", "clean_labels"):
            np.testing.assert_array_equal(getattr(again, column), getattr(table, column))
        assert indexed.splits[split].num_clean_labels == built.splits[split].num_clean_labels


def test_keys_that_recur_in_another_shard_are_told_apart(tmp_path):
    write_shards(tmp_path / "set", **{"train-0": [sample(1), sample(2)], "val-0": [sample(1)]})
    manifest = index_shards(tmp_path / "set", OPTIONS)
    assert set(read_all(manifest, "train")) == {"train-0-000001", "train-0-000002"}
    assert set(read_all(manifest, "val")) == {"val-0-000001"}


def test_keys_that_are_alike_behind_their_shards_are_told_apart(tmp_path):
    picture, (one, other) = encoded(photo(1, 40, 30)), (tmp_path / "set" / "a.tar", tmp_path / "set" / "a" / "b.tar")
    other.parent.mkdir(parents=True)
    write_members(one, ("b/c.jpg", picture), ("b/c.cls", b"0"), ("z.jpg", picture), ("z.cls", b"0"))
    write_members(other, ("c.jpg", picture), ("c.cls", b"1"), ("z.jpg", picture), ("z.cls", b"1"))
    manifest = index_shards(tmp_path / "set", OPTIONS)
    assert check(manifest) == []
    assert {"a-z", "a-b-z"} < set(open_split(manifest, "train").example_ids)


def test_members_whose_bytes_do_not_lie_there_in_one_piece_are_no_pictures(tmp_path):
    """A second name for another member, and a file with holes."""
    (tmp_path / "set").mkdir()
    picture = encoded(photo(1, 40, 30))
    link, holes = tarfile.TarInfo("b.jpg"), tarfile.TarInfo("c.jpg")
    link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
    holes.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(len(picture))}
    data = f"1\n0\n{len(picture)}\n".encode().ljust(512, b"\0") + picture
    holes.size = len(data)
    with tarfile.open(tmp_path / "set" / "a.tar", "w") as tar:
        for number, (info, content) in enumerate([(tarfile.TarInfo("a.jpg"), picture), (link, b""), (holes, data)]):
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            label = tarfile.TarInfo(info.name.replace("jpg", "cls"))
            label.size = 1
            tar.addfile(label, io.BytesIO(str(number).encode()))
    manifest = index_shards(tmp_path / "set", tolerant())
    assert [(skipped.example_id, skipped.reason) for skipped in manifest.skipped] == [
        ("b", "a.tar: has 0 pictures, not one, among its members .cls"),
        ("c", "a.tar: has 0 pictures, not one, among its members .cls"),
    ]
    assert read_all(manifest, "train") == {"a": picture}


def test_what_follows_the_end_of_a_tar_counts_for_its_checksum(tmp_path):
    write_shards(tmp_path / "set", a=[sample(1)])
    with (tmp_path / "set" / "a.tar").open("ab") as file:
        file.write(bytes(9 << 20))
    assert check(index_shards(tmp_path / "set", OPTIONS)) == []


def test_names_of_any_bytes_are_listed_readably(tmp_path):
    (tmp_path / "set").mkdir()
    picture = encoded(photo(1, 40, 30))
    write_members(
        tmp_path / "set" / "a.tar",
        ("\udcff \x1b.jpg", picture), ("\udcff \x1b.cls", b"1"),
        ("b.jpg", picture), ("b.cls", b"1"), ("b.\udcff\x1b", b""), ("b.\udcff\x1b", b""),
    )  # fmt: skip
    (skipped,) = index_shards(tmp_path / "set", tolerant()).skipped
    assert skipped.reason == r"a.tar: has 2 members .\udcff\x1b"
    manifest = Manifest.load(tmp_path / "set" / "manifest.json")
    assert re.fullmatch(r"___-[0-9a-f]{10}", open_split(manifest, "train").example_ids[0])


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_folders_long_names_and_dots_in_kinds(tmp_path, fmt):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    long = f"{'d' * 60}/{'d' * 60}/a"
    picture = encoded(photo(1, 40, 30))
    write_members(
        folder / "0.tar",
        ("./one.jpg", picture), ("./one.seg.png", b"a mask"), ("./one.cls", b" 2\n"),
        ("__meta__", b"x"), ("__meta__/a.jpg", b"x"), ("readme", b"no sample"),
        (f"{long}.JPEG", picture), (f"{long}.cls", b"dog"),
        fmt=fmt,
    )  # fmt: skip
    manifest = index_shards(tmp_path / "set", OPTIONS)
    table = open_split(manifest, "train")
    assert table.given_labels.tolist() == [2, 1]
    assert table.example_ids[0] == "one"
    assert set(read_all(manifest, "train").values()) == {picture}
    assert manifest.splits["train"].shards[0].path == "train/0.tar"


@pytest.mark.parametrize(
    ("label", "clean"),
    [(b'{"label": 2, "true": 0}', 0), (b'{"label": "owl", "true": "cat"}', 0), (b'{"label": "2"}', -1)],
)
def test_labels_in_json_and_by_name(tmp_path, label, clean):
    write_shards(tmp_path / "set", a=[sample(1, json=label)])
    rules = LabelRules(LabelPlace.parse("json:label"), LabelPlace.parse("json:true"), CLASSES)
    manifest = index_shards(tmp_path / "set", IndexOptions("pets", rules, num_processes=1))
    table = open_split(manifest, "train")
    assert (table.given_labels.tolist(), table.clean_labels.tolist()) == ([2], [clean])


def test_given_labels_may_be_said_to_be_clean(tmp_path):
    write_shards(tmp_path / "set", a=[sample(n) for n in range(3)])
    manifest = index_shards(tmp_path / "set", dataclasses.replace(OPTIONS, are_clean=True))
    assert open_split(manifest, "train").clean_labels.tolist() == [0, 1, 2]
    assert manifest.splits["train"].num_clean_labels == 3


def without(made: dict, kind: str) -> dict:
    return {name: value for name, value in made.items() if name != kind}


BAD_SAMPLES = {
    "no label": (without(sample(1), "cls"), None, r"has no label in \.cls; its members are \.jpg$"),
    "a label out of range": (sample(1, 3), None, "label 3 must be 0 to 2"),
    "no class": (sample(1, cls=b"cow"), None, "label 'cow' is neither a number from 0 up nor a class"),
    "a negative label": (sample(1, cls=b"-1"), None, "label '-1' is neither"),
    "a label that is no text": (sample(1, cls=b"\xff"), None, r"\.cls is no text"),
    "no picture": (without(sample(1), "jpg"), 1, r"has 0 pictures, not one, among its members \.cls$"),
    "a dot in the key": (
        without(sample(1, **{"v2.jpg": b""}), "jpg"),
        1,
        r"has 0 pictures, not one, among its members (\.v2\.jpg, \.cls|\.cls, \.v2\.jpg)$",
    ),
    "two pictures": (sample(1, png=encoded(photo(2, 40, 30), "PNG")), 1, r"has 2 pictures, not one, among .*\.png"),
    "not a picture": (sample(1, jpg=b"text"), 1, "not a known image format"),
    "zero bytes": (sample(1, jpg=b""), 1, "not a known image format"),
    "its key again": (sample(0), 0, "its key is that of another sample of the shard"),
}


@pytest.mark.parametrize(("bad", "label", "reason"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_bad_samples_are_listed_up_to_the_limit(tmp_path, bad, label, reason):
    write_shards(tmp_path / "set", a=[sample(0), sample(2), bad, sample(4), sample(5)])
    manifest = index_shards(tmp_path / "set", tolerant())
    (skipped,) = manifest.skipped
    assert (skipped.split, skipped.ordinal, skipped.label) == ("train", 2, label)
    assert skipped.example_id == bad["__key__"]
    assert re.search(rf"^a\.tar: .*{reason}", skipped.reason)
    train = manifest.splits["train"]
    assert (train.num_examples, train.num_listed) == (4, 5)
    assert open_split(manifest, "train").ordinals.tolist() == [0, 1, 3, 4]
    (tmp_path / "set" / "manifest.json").unlink()
    with pytest.raises(
        ValueError, match=f"1 of 5 examples of split 'train' cannot be used; max_bad_fraction 0.1 tolerates 0.*{reason}"
    ):
        index_shards(tmp_path / "set", dataclasses.replace(OPTIONS, max_bad_fraction=0.1))
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_noise_at_load_is_drawn_for_lost_examples_that_have_a_label(tmp_path):
    samples = [sample(number) for number in range(30)]
    samples[4]["jpg"] = b"lost, but labelled"
    samples[9]["cls"] = 77
    write_shards(tmp_path / "set", a=samples)
    corruption = SymmetricCorruption(rate=0.5)
    table = open_split(index_shards(tmp_path / "set", tolerant()), "train", corruption)
    labels = np.array([number % 3 for number in range(30) if number != 9])
    expected = np.delete(corrupt(labels, 3, corruption), 4)
    assert table.given_labels.tolist() == expected.tolist()


def test_a_data_set_that_stands_there_is_only_replaced_by_force(tmp_path):
    write_shards(tmp_path / "set", a=[sample(n) for n in range(3)])
    first = index_shards(tmp_path / "set", OPTIONS)
    assert index_shards(tmp_path / "set", OPTIONS).digest == first.digest
    other = dataclasses.replace(OPTIONS, are_clean=True)
    with pytest.raises(ValueError, match="holds another build of data set 'pets'"):
        index_shards(tmp_path / "set", other)
    assert check(Manifest.load(tmp_path / "set" / "manifest.json")) == []
    assert index_shards(tmp_path / "set", dataclasses.replace(other, force=True)).digest != first.digest
    assert check(Manifest.load(tmp_path / "set" / "manifest.json")) == []


def test_indexing_again_changes_nothing_but_damage(tmp_path):
    folder = tmp_path / "set"
    write_shards(folder, a=[sample(1)], b=[sample(2)])
    assert indexing.index_shards(folder, OPTIONS).is_new
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}
    assert not indexing.index_shards(folder, OPTIONS).is_new
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()} == before
    (folder / "a.index.arrow").write_bytes(b"damaged")
    repaired = indexing.index_shards(folder, OPTIONS)
    assert repaired.is_new
    assert check(repaired.manifest) == []


def test_a_reason_of_many_samples_is_said_once(tmp_path):
    unlabelled = [without(sample(number), "cls") for number in range(5)]
    write_shards(tmp_path / "set", a=unlabelled[:3], b=[*unlabelled[3:], sample(5, 9), sample(6)])
    with pytest.raises(ValueError, match="6 of 7 examples") as error:
        index_shards(tmp_path / "set", OPTIONS)
    assert str(error.value).endswith(
        "or leave them out with --max-bad-fraction 0.86. The first: 000000: a.tar: has no label in .cls; its members"
        " are .jpg (4 more alike); 000005: b.tar: label 9 must be 0 to 2"
    )


def test_while_indexes_are_replaced_there_is_no_data_set(tmp_path, monkeypatch):
    write_shards(tmp_path / "set", a=[sample(1)])
    index_shards(tmp_path / "set", OPTIONS)
    monkeypatch.setattr(LocalStorage, "write", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        index_shards(tmp_path / "set", dataclasses.replace(OPTIONS, force=True))
    assert not (tmp_path / "set" / "manifest.json").exists()
