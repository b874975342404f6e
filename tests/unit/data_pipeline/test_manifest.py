"""manifest.json: what is refused, what its digest covers, and that damage is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_pipeline.check import check
from data_pipeline.manifest import Manifest


def copy_of(manifest: Manifest, folder: Path) -> Path:
    shutil.copytree(manifest.root, folder)
    return folder / "manifest.json"


def test_load_gives_back_what_was_saved(digits):
    loaded = Manifest.load(digits.root / "manifest.json")
    assert loaded.to_bytes() == digits.to_bytes() == (digits.root / "manifest.json").read_bytes()
    assert loaded.digest == digits.digest
    assert loaded.root == digits.root
    assert loaded.classes == tuple("0123456789")


def test_moving_a_data_set_keeps_its_digest(digits, tmp_path):
    moved = Manifest.load(copy_of(digits, tmp_path / "elsewhere"))
    assert moved.digest == digits.digest
    assert check(moved) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no data set manifest"),
        (b"{}", "is no data set manifest: name: Field required"),
        (b"\xff\x00", "is no data set manifest"),
    ],
)
def test_broken_manifest_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Manifest.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_missing_manifest_names_the_path(tmp_path):
    with pytest.raises(ValueError, match=r"no/manifest\.json.*no such file"):
        Manifest.load(tmp_path / "no" / "manifest.json")
    with pytest.raises(ValueError, match=r"is a folder; give the manifest\.json in it"):
        Manifest.load(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        Manifest.load("nul\0byte")


@pytest.mark.parametrize("path", ["/etc/passwd", "../other.tar", "a/../../b.tar", ""])
def test_shards_outside_the_folder_are_refused(digits, tmp_path, path):
    content = json.loads(digits.to_bytes())
    content["splits"]["train"]["shards"][0]["path"] = path
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must be relative and stay inside"):
        Manifest.load(file)


def test_counts_that_disagree_are_refused(digits, tmp_path):
    content = json.loads(digits.to_bytes())
    content["splits"]["val"]["num_examples"] += 1
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="split 'val': num_examples 201"):
        Manifest.load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ordinal": 301}, "'lost' is number 301 of split 'test', which lists fewer"),
        ({"split": "dev"}, "'lost' is number 300 of split 'dev'"),
        ({"label": 10}, "label 10 of 'lost' is none of the classes"),
        ({}, None),
    ],
)
def test_skipped_examples_that_cannot_be_are_refused(digits, tmp_path, change, message):
    content = json.loads(digits.to_bytes())
    lost = {"example_id": "lost", "split": "test", "ordinal": 300, "label": 1, "reason": "gone", **change}
    content["splits"]["test"]["num_listed"] += lost["split"] == "test"
    content["skipped"] = [lost]
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(content))
    if message is None:
        assert len(Manifest.load(file).skipped) == 1
        content["splits"]["test"]["num_listed"] += 1
        content["skipped"] *= 2
        file.write_text(json.dumps(content))
        message = "two examples have one split and ordinal"
    with pytest.raises(ValueError, match=message):
        Manifest.load(file)


def test_unknown_split_names_those_there_are(digits):
    with pytest.raises(ValueError, match="'dev' is not in data set 'digits'; it has train, val, test"):
        digits.split("dev")
