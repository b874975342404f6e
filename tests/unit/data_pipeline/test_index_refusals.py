"""Shards that cannot be indexed: each is refused by name, and nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from foreign_shards import (
    CLASSES,
    OPTIONS,
    index_shards,
    sample,
    tolerant,
    write_members,
    write_shards,
)
from PIL import Image
from sample_data import encoded, photo

from data_pipeline.sources import webdataset as webdataset_source
from data_pipeline.sources.webdataset import LabelPlace, LabelRules


@pytest.mark.parametrize("kind", ["pyd", "pickle", "pkl", "pth", "meta.pyd", "PKL"])
def test_shards_with_pickles_are_refused_by_name(tmp_path, kind):
    (tmp_path / "set").mkdir()
    write_members(tmp_path / "set" / "a.tar", ("1.jpg", encoded(photo(1))), (f"1.{kind}", pickle.dumps({})))
    with pytest.raises(ValueError, match=f"a.tar: '1.{kind}' is a pickle, which may run code"):
        index_shards(tmp_path / "set", tolerant())


def member_ends(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset_data + -(-member.size // 512) * 512 for member in tar]


@pytest.mark.parametrize("where", ["between two members", "in a header", "in a picture", "in its padding", "at a flip"])
def test_a_damaged_shard_is_refused_by_name(tmp_path, where):
    write_shards(tmp_path / "set", a=[sample(n) for n in range(3)], b=[sample(9)])
    path = tmp_path / "set" / "a.tar"
    data, ends = path.read_bytes(), member_ends(path)
    cut = {"between two members": 0, "in a header": 100, "in a picture": 3 * 512 + 100, "in its padding": -1}
    if where == "at a flip":
        path.write_bytes(data[: ends[1]] + b"\xff" + data[ends[1] + 1 :])
    else:
        path.write_bytes(data[: ends[1] + cut[where]])
    with pytest.raises(ValueError, match=r"a\.tar is (damaged or cut|no whole)"):
        index_shards(tmp_path / "set", tolerant())
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_what_is_no_folder_of_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        index_shards(tmp_path / "no", OPTIONS)
    with pytest.raises(ValueError, match=r"holds no \.tar file"):
        index_shards(tmp_path, OPTIONS)
    with pytest.raises(ValueError, match="pipe: is not read"):
        index_shards("pipe:cat x.tar", OPTIONS)
    with pytest.raises(ValueError, match="is not a folder of this machine"):
        index_shards("s3://bucket/set", OPTIONS)
    write_shards(tmp_path / "set", val=[sample(1)])
    with pytest.raises(ValueError, match="no shard is left for train"):
        index_shards(tmp_path / "set", OPTIONS)
    (tmp_path / "set" / "train.tar").write_bytes(b"\x1f\x8bcompressed")
    with pytest.raises(ValueError, match=r"train\.tar is no whole, uncompressed tar"):
        index_shards(tmp_path / "set", OPTIONS)


def test_shards_whose_names_cannot_stand_in_a_manifest_are_refused(tmp_path):
    write_shards(tmp_path / "set", a=[sample(1)])
    for name, message in (("a\udcff.tar", "cannot stand in a manifest"), ("pipe:a.tar", "pipe: is not read inside")):
        named = (tmp_path / "set" / "a.tar").rename(tmp_path / "set" / name)
        with pytest.raises(ValueError, match=message):
            index_shards(tmp_path / "set", OPTIONS)
        named.rename(tmp_path / "set" / "a.tar")


def test_a_folder_that_cannot_be_written_to_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write_shards(tmp_path / "set", a=[sample(1)])
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path / "set", os.W_OK))
    with pytest.raises(ValueError, match=r"set cannot be written to; index files and manifest\.json go beside"):
        index_shards(tmp_path / "set", OPTIONS, lambda *_: pytest.fail("it was read"))


def test_compressed_shards_are_refused_rather_than_left_out(tmp_path):
    write_shards(tmp_path / "set", a=[sample(1)])
    (tmp_path / "set" / "b.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds 'b\.tar\.gz': decompress it"):
        index_shards(tmp_path / "set", OPTIONS)


@pytest.mark.parametrize("classes", [("1", "2", "3"), ("cat", "0"), ("0", "2", "1")])
def test_class_names_that_could_be_other_numbers_are_refused(classes):
    with pytest.raises(ValueError, match="give this one another name"):
        LabelRules(LabelPlace.parse("cls"), None, classes)


@pytest.mark.parametrize("text", ["", ":", "json:", ":label", "pyd", "a.pkl:label"])
def test_a_label_place_says_what_it_must_be(text):
    with pytest.raises(ValueError, match="must be the kind of a member"):
        LabelPlace.parse(text)


def test_members_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset_source, "MAX_MEMBER_BYTES", 2000)
    monkeypatch.setattr(webdataset_source, "MAX_LABEL_BYTES", 20)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    large = encoded(Image.fromarray(noise), "PNG")
    write_shards(tmp_path / "set", a=[sample(0), sample(1, jpg=large), sample(2, cls=b" " * 21 + b"1"), sample(3)])
    assert [skipped.reason for skipped in index_shards(tmp_path / "set", tolerant()).skipped] == [
        "a.tar: its picture has more than 2,000 bytes",
        "a.tar: .cls has more than 20 bytes",
    ]


def test_deep_json_is_a_bad_label(tmp_path):
    write_shards(
        tmp_path / "set", a=[sample(1), sample(2, json=b"[" * 100_000), sample(3, json=json.dumps({"y": True}))]
    )
    rules = LabelRules(LabelPlace.parse("cls"), LabelPlace.parse("json:y"), CLASSES)
    manifest = index_shards(tmp_path / "set", tolerant(labels=rules))
    assert [skipped.reason for skipped in manifest.skipped] == [
        "a.tar: .json is no JSON",
        "a.tar: label 'True' is neither a number from 0 up nor a class",
    ]
