"""What `hush data show` says of labels and pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sample_data import build_clothing, build_digits, encoded, photo
from typer.testing import CliRunner

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.cli import app
from data_pipeline.examples import open_split
from data_pipeline.manifest import Manifest
from data_pipeline.sources.image_folder import ImageFolder
from data_pipeline.spec import ClassDependentCorruption, PairflipCorruption
from data_pipeline.summary import LabelPair, Spread, summarise


def show(manifest, *options: str) -> str:
    result = CliRunner().invoke(app, ["show", manifest.url, *options], catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.stdout


def test_confusion_counts_known_clean_labels_only(built_clothing):
    _, manifest = built_clothing
    summary = summarise(open_split(manifest, "train"))
    assert manifest.splits["train"].num_clean_labels == 3
    assert summary.confusion == (LabelPair(0, 2, 1), LabelPair(1, 0, 1), LabelPair(2, 1, 1))
    assert summary.num_wrong == 3
    assert summary.wrong() == list(summary.confusion)
    assert summary.matrix(3).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    val = summarise(open_split(manifest, "val"))
    assert (val.num_wrong, val.matrix(3).sum()) == (0, 5)


def test_wrong_labels_are_listed_the_most_frequent_first(tmp_path):
    table = open_split(build_digits(tmp_path, BuildOptions(corruption=PairflipCorruption(rate=0.3))), "train")
    summary = summarise(table)
    expected = np.zeros((10, 10), dtype=np.int64)
    np.add.at(expected, (table.clean_labels, table.given_labels), 1)
    np.testing.assert_array_equal(summary.matrix(10), expected)
    counts = [pair.count for pair in summary.wrong()]
    assert counts == sorted(counts, reverse=True)
    assert all((pair.clean_label + 1) % 10 == pair.given_label for pair in summary.wrong())
    assert summary.num_wrong == sum(counts) == int((table.clean_labels != table.given_labels).sum())


def test_sizes_are_those_of_the_pictures(built_clothing):
    """Picture n is 100 + n high and 140 - n wide; val holds 20 to 24."""
    made, manifest = built_clothing
    summary = summarise(open_split(manifest, "val"))
    assert (summary.height, summary.width) == (Spread(120, 122.0, 124), Spread(116, 118.0, 120))
    lengths = sorted(made.image(key).stat().st_size for key in made.val)
    assert summary.length_bytes == Spread(lengths[0], lengths[2], lengths[-1])


def test_show_prints_classes_counts_noise_and_sizes(built_clothing):
    _, manifest = built_clothing
    shown = show(manifest)
    for text in (
        "T-Shirt", "Knitwear", "116 – 118 – 120", "120 – 122 – 124",
        "train: 3 of 3 known clean labels differ from the given one (100.0%)",
        "val: 0 of 5 known clean labels differ from the given one (0.0%)",
        manifest.digest,
    ):  # fmt: skip
        assert text in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["1", "Shirt", "100", "·", "·"] in rows


def test_show_json_holds_it_all(clothing, tmp_path):
    corruption = ClassDependentCorruption(k=0.2, beta=0.1, seed=1)
    manifest = build_clothing(clothing, tmp_path / "out", BuildOptions(shard_size=8, corruption=corruption))
    shown = json.loads(show(manifest, "--json"))
    assert shown["corruption"] == {"kind": "class_dependent", "k": 0.2, "beta": 0.1, "seed": 1}
    np.testing.assert_allclose(shown["transition_matrix"], [[0.7, 0.15, 0.15], [0.2, 0.6, 0.2], [0.25, 0.25, 0.5]])
    train = shown["contents"]["train"]
    assert sum(pair["count"] for pair in train["confusion"]) == 3
    assert train["height"] == {"smallest": 100, "median": 109.5, "largest": 119}
    assert "class_dependent" in show(manifest)


@pytest.mark.parametrize("num_classes", [16, 17])
def test_many_classes_get_a_list_of_confusions_instead_of_a_matrix(tmp_path, num_classes):
    names = [f"[b]{number:02d}" for number in range(num_classes)]  # no markup, whatever they look like
    for number, name in enumerate(names):
        picture = tmp_path / "raw" / name / "a.jpg"
        picture.parent.mkdir(parents=True)
        picture.write_bytes(encoded(photo(number, 40, 30)))
    corruption = PairflipCorruption(rate=0.9)
    source = ImageFolder(tmp_path / "raw", "[/b] set", are_clean=True)
    manifest = build(source, tmp_path / "out", BuildOptions(corruption=corruption)).manifest
    shown = show(manifest)
    assert ("the most frequent" in shown) == (num_classes == 17)
    assert ("clean \\ given, %" in shown) == (num_classes == 16)
    assert names[3] in shown
    assert f"[/b] set: {num_classes} classes" in shown


def test_unknown_clean_labels_are_said_to_be_unknown(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "a.jpg").write_bytes(encoded(photo(1, 40, 30)))
    shown = show(build(ImageFolder(tmp_path / "raw"), tmp_path / "out", BuildOptions()).manifest)
    assert "train: no clean label is known" in shown


def test_a_split_without_examples_is_shown_as_such(built_clothing, tmp_path):
    manifest = built_clothing[1]
    empty = manifest.splits["val"].model_copy(
        update={"num_examples": 0, "num_listed": 0, "num_clean_labels": 0, "class_counts": (0, 0, 0), "shards": ()}
    )
    copied = Path(shutil.copytree(manifest.root, tmp_path / "copy"))
    manifest.model_copy(update={"splits": {**manifest.splits, "val": empty}}).save(copied)
    shown = show(Manifest.load(copied / "manifest.json"))
    rows = [line.split() for line in shown.splitlines()]
    assert ["│", "val", "│", "0", "│", "0", "│", "0", "│", "0", "│", "0", "│", "0.0", "│"] in rows
