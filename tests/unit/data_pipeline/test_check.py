"""`check` says what is wrong, and where: file, example, reason."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from sample_data import build_clothing, encoded, photo
from typer.testing import CliRunner

from data_pipeline.building.build import BuildOptions
from data_pipeline.check import Problem, check
from data_pipeline.cli import app
from data_pipeline.examples import INDEX_SCHEMA
from data_pipeline.manifest import Manifest

SHARD, INDEX = "train-000001.tar", "train-000001.index.arrow"


@pytest.fixture
def copied(built_clothing, tmp_path) -> Path:
    """A folder to damage: 8, 8 and 4 examples of train, 5 of val, 6 of test."""
    return Path(shutil.copytree(built_clothing[1].root, tmp_path / "copy"))


def checked(folder: Path, **options) -> list[Problem]:
    return check(Manifest.load(folder / "manifest.json"), num_processes=1, **options)


def rows_of(folder: Path, index: str = INDEX) -> list[dict[str, object]]:
    return pa.ipc.open_file((folder / index).read_bytes()).read_all().to_pylist()


def write_index(folder: Path, content: bytes, index: str = INDEX) -> None:
    """Replace an index file, and let the manifest say so: only what stands in it is wrong."""
    (folder / index).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["splits"]["train"]["shards"]:
        if shard["index"]["path"] == index:
            shard["index"]["size_bytes"] = len(content)
            shard["index"]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def arrow_file(rows: list[dict[str, object]], schema: pa.Schema = INDEX_SCHEMA) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    return sink.getvalue()


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("decode_pictures", [False, True])
def test_nothing_is_wrong_with_what_was_built(built_clothing, num_processes, decode_pictures):
    told: list[int] = []
    manifest = built_clothing[1]
    problems = check(manifest, decode_pictures=decode_pictures, num_processes=num_processes, on_step=told.append)
    assert problems == []
    assert sum(told) == 31


def test_a_flipped_bit_is_told_with_its_example(copied):
    third = rows_of(copied)[2]
    flip(copied / SHARD, third["offset"] + 5)
    whole, example = checked(copied)
    assert (whole.file, whole.example_id) == (SHARD, None)
    assert "content differs from the manifest's sha256" in whole.reason
    assert (example.file, example.example_id) == (SHARD, third["example_id"])
    end = third["offset"] + third["length"]
    assert example.reason == f"bytes {third['offset']} to {end} differ from their checksum"
    assert str(example) == f"{SHARD}: {third['example_id']}: {example.reason}"


def test_damage_beside_the_pictures_is_told_as_such(copied):
    flip(copied / SHARD, rows_of(copied)[2]["offset"] - 512)
    assert [problem.example_id for problem in checked(copied)] == [None, None]
    assert "no picture is hurt" in checked(copied)[1].reason


def test_a_cut_shard_is_told_with_all_that_it_has_lost(copied):
    rows = rows_of(copied)
    content = (copied / SHARD).read_bytes()
    (copied / SHARD).write_bytes(content[: rows[5]["offset"] + 10])
    whole, *examples = checked(copied)
    assert whole.reason == f"{rows[5]['offset'] + 10:,} bytes, the manifest says {len(content):,}"
    assert [problem.example_id for problem in examples] == [row["example_id"] for row in rows[5:]]
    assert all("the file ends inside the picture" in problem.reason for problem in examples)


def test_files_that_are_gone_or_cannot_be_read_are_told_once(copied):
    (copied / SHARD).unlink()
    (copied / INDEX).unlink()
    (copied / "val-000000.tar").unlink()
    (copied / "test-000000.index.arrow").unlink()
    (copied / "test-000000.index.arrow").mkdir()
    assert [(problem.file, problem.example_id) for problem in checked(copied)] == [
        (SHARD, None), (INDEX, None), ("val-000000.tar", None), ("test-000000.index.arrow", None),
    ]  # fmt: skip
    assert {problem.reason for problem in checked(copied)[:3]} == {"there is no such file"}


def test_a_picture_that_was_damaged_before_the_build_is_found_by_decoding(clothing, tmp_path):
    key = clothing.val[2]
    clothing.image(key).write_bytes(encoded(photo(3))[:-900])
    folder = build_clothing(clothing, tmp_path / "out", BuildOptions(shard_size=8)).root
    assert checked(folder) == []
    (problem,) = checked(folder, decode_pictures=True)
    assert (problem.file, problem.example_id) == ("val-000000.tar", "2-01-22,1022")
    assert "damaged JPEG" in problem.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"given_label": 3}, "given label 3 must be 0 to 2"),
        ({"given_label": -1}, "given label -1 must be 0 to 2"),
        ({"clean_label": 3}, "clean label 3 must be 0 to 2, or -1: unknown"),
        ({"offset": 10**9, "length": 5}, "bytes 1000000000 to 1000000005 lie outside the shard's"),
        ({"offset": -5}, "bytes -5 to "),
        ({"length": -1}, "bytes "),
        ({"length": 2**62}, "bytes "),
        ({"height": 0}, "a picture of 140 x 0 pixels"),
    ],
)
def test_rows_that_cannot_be_are_told(copied, change, reason):
    rows = rows_of(copied)
    rows[4] = {**rows[4], "width": 140, **change}
    write_index(copied, arrow_file(rows))
    first, *others = checked(copied)
    assert (first.file, first.example_id) == (INDEX, rows[4]["example_id"])
    assert first.reason.startswith(reason)
    assert all(problem.file == "train" for problem in others)  # what it all adds up to
    assert first in checked(copied, decode_pictures=True)


def test_a_picture_of_another_size_than_the_index_says_is_found_by_decoding(copied):
    rows = rows_of(copied)
    was = f"{rows[4]['width']} x {rows[4]['height']} pixels"
    rows[4] |= {"height": 77, "width": 99}
    write_index(copied, arrow_file(rows))
    assert checked(copied) == []
    assert [
        (problem.file, problem.example_id, problem.reason) for problem in checked(copied, decode_pictures=True)
    ] == [(SHARD, rows[4]["example_id"], f"{was}, the index says 99 x 77")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"given_label": 2}, "the given labels do not add up to class_counts"),
        ({"clean_label": 0}, "clean labels, the manifest says 3"),
        ({"ordinal": 20}, "ordinals must be different numbers below num_listed 20"),
        ({"ordinal": -1}, "ordinals must be different numbers below num_listed 20"),
    ],
)
def test_a_split_that_does_not_add_up_is_told(copied, change, reason):
    rows = rows_of(copied)
    ((column, value),) = change.items()
    place = next(place for place, row in enumerate(rows) if row[column] != value and row["clean_label"] == -1)
    rows[place][column] = value
    write_index(copied, arrow_file(rows))
    (problem,) = checked(copied)
    assert (problem.file, problem.example_id) == ("train", None)
    assert reason in problem.reason


def test_ids_that_occur_twice_are_told_with_each_shard(copied):
    rows = rows_of(copied)
    twice = rows_of(copied, "val-000000.index.arrow")[0]["example_id"]
    rows[0]["example_id"] = twice
    write_index(copied, arrow_file(rows))
    assert [(problem.file, problem.example_id) for problem in checked(copied)] == [
        (SHARD, twice), ("val-000000.tar", twice),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda rows: b"no arrow", "is no index file"),
        (lambda rows: arrow_file(rows)[:-40], "is no index file"),
        (lambda rows: arrow_file(rows[:-1]), "7 examples, the manifest says 8"),
        (lambda rows: arrow_file(rows, INDEX_SCHEMA.remove(0)), "its columns must be example_id, suffix, offset"),
    ],
)
def test_index_files_that_do_not_fit_are_told(copied, content, reason):
    write_index(copied, content(rows_of(copied)))
    (problem,) = checked(copied)
    assert (problem.file, problem.example_id) == (INDEX, None)
    assert problem.reason.startswith(reason)


def test_the_command_prints_a_line_for_each_problem(copied):
    manifest = str(copied / "manifest.json")
    sound = CliRunner().invoke(app, ["check", manifest, "--decode", "--processes", "1"])
    said = "clothing1m: all is as the manifest says: 5 shards with 31 pictures, each of which decodes\n"
    assert (sound.exit_code, sound.stdout) == (0, said)
    flip(copied / SHARD, rows_of(copied)[2]["offset"] + 5)
    damaged = CliRunner().invoke(app, ["check", manifest])
    assert damaged.exit_code == 1
    shard, picture, counts, advice = damaged.stdout.splitlines()
    assert shard == f"{SHARD}: its content differs from the manifest's sha256"
    assert picture.startswith(f"{SHARD}: ")
    assert "differ from their checksum" in picture
    assert counts == "clothing1m is not as the manifest says: 1 of 31 examples, 1 of its files"
    assert advice.startswith("build it again")
    as_json = CliRunner().invoke(app, ["check", manifest, "--json"])
    assert [problem["file"] for problem in json.loads(as_json.stdout)["problems"]] == [SHARD, SHARD]
