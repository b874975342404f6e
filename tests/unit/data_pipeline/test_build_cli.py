"""`hush data build`: what it says of how a build went, and of arguments that cannot be."""

from __future__ import annotations

import json

import pytest
from sample_data import encoded, photo
from typer.testing import CliRunner

from data_pipeline.building import build as building
from data_pipeline.cli import app
from data_pipeline.cli import build as cli_build
from data_pipeline.examples import open_split
from data_pipeline.manifest import Manifest


def run(*arguments):
    return CliRunner().invoke(app, ["build", *map(str, arguments)], catch_exceptions=False)


def notes(*arguments) -> list[str]:
    return json.loads(run(*arguments, "--json").stdout)["notes"]


def test_injected_noise_is_told(tmp_path):
    (told,) = notes("digits", tmp_path, "--corruption", "pairflip:0.3", "--seed", 4)
    train = open_split(Manifest.load(tmp_path / "manifest.json"), "train")
    share = (train.given_labels != train.clean_labels).mean()
    assert told == f"noise injected into train: pairflip, rate 0.3, seed 4: {share:.1%} of its labels changed"
    again = notes("digits", tmp_path, "--corruption", "pairflip:0.3", "--seed", 4)
    assert again == [told, "this very data set stood there already: nothing was changed"]


def test_labels_that_noise_replaces_for_good_are_warned_of(tmp_path):
    for number in range(8):
        picture = tmp_path / "raw" / ("cat" if number % 2 else "dog") / f"{number}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(encoded(photo(number, 40, 30)))
    noisy = ("image-folder", tmp_path / "raw", tmp_path / "out", "--corruption", "symmetric:0.5")
    assert notes(*noisy)[1] == (
        "warning: 8 of 8 training examples have no clean label: what their label was before the noise is not kept;"
        " if the folders are right, say --are-clean"
    )
    assert len(notes(*noisy, "--are-clean", "--force")) == 1


def test_a_build_that_was_stopped_goes_on_and_says_so(tmp_path, monkeypatch):
    options = ("digits", tmp_path, "--shard-size", 500, "--processes", 1)
    with monkeypatch.context() as patched:

        def stop(progress):
            if progress.split == "val":
                raise KeyboardInterrupt

        patched.setattr(
            building, "build", lambda source, out, how, _, build=building.build: build(source, out, how, stop)
        )
        stopped = run(*options)
    assert (stopped.exit_code, stopped.stderr) == (130, f"{cli_build.GOES_ON}\n")
    assert notes(*options) == ["went on with a build that was stopped: 3 of its shards were taken over"]
    assert notes(*options) == ["this very data set stood there already: nothing was changed"]


def test_shards_that_are_indexed_already_are_said_to_be(tmp_path):
    run("digits", tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert notes("webdataset", tmp_path, "--classes", "digits") == []
    again = notes("webdataset", tmp_path, "--classes", "digits")
    assert again == ["this very data set stood there already: nothing was changed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("webdataset", "{}", "--classes", "@{}/nope"), "nope': the file cannot be read (No such file or directory);"),
        (("webdataset", "{}", "--classes", "@{}/bytes"), "bytes': the file is not UTF-8 text; give one with the name"),
        (("digits", "{}/bytes"), "bytes' is no folder; give a folder"),
        (("digits", "https://data.example.org/set"), "can only be read from; give a folder or s3://bucket/prefix"),
        (("digits", "{}/bytes/x"), "bytes is none; give a folder"),
        (("webdataset", "s3://bucket/set", "--classes", "3"), "SRC begins with s3://, but must be a local folder;"),
        (("clothing1m", "https://host/set", "{}/out"), "SRC begins with https://, but must be a local folder;"),
        (("image-folder", "s3://bucket/set", "{}/out"), "SRC begins with s3://, but must be a local folder;"),
        (("cifar", "s3://bucket/set", "{}/out"), "SRC begins with s3://, but must be a local folder;"),
        (("mnist", "s3://bucket/set", "{}/out"), "SRC begins with s3://, but must be a local folder;"),
    ],
)
def test_what_is_wrong_and_what_to_do_is_said_in_a_line(tmp_path, arguments, message):
    (tmp_path / "bytes").write_bytes(b"\xff")
    refused = run(*(argument.format(tmp_path) for argument in arguments))
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert message in refused.stderr
    assert "Errno" not in refused.stderr


def test_errors_of_files_are_told_without_their_number(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "out/train-000000.tar")

    monkeypatch.setattr(building, "build", fail)
    assert run("digits", tmp_path).stderr == "error: out/train-000000.tar: No space left on device\n"
