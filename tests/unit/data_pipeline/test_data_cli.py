"""`hush data`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from cifar_files import make_cifar100_python
from sample_data import build_clothing, encoded, make_tar, photo
from typer.testing import CliRunner

from data_pipeline.cli import app
from data_pipeline.cli.build import parse_corruption
from data_pipeline.manifest import Manifest
from data_pipeline.spec import ClassDependentCorruption, PairflipCorruption, SymmetricCorruption


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_build_digits_and_look_at_them(tmp_path):
    built = run("build", "digits", tmp_path, "--corruption", "pairflip:0.3", "--seed", 4, "--json")
    assert built.exit_code == 0
    summary = json.loads(built.stdout)
    manifest = Manifest.load(summary["manifest"])
    assert summary["digest"] == manifest.digest
    assert summary["splits"]["train"]["num_examples"] == 1297
    assert manifest.recipe.corruption == PairflipCorruption(rate=0.3, seed=4)
    shown = run("show", tmp_path / "manifest.json")
    assert shown.exit_code == 0
    assert "1,297" in shown.stdout
    assert manifest.digest in shown.stdout
    assert run("check", tmp_path / "manifest.json").exit_code == 0
    (tmp_path / "val-000000.tar").write_bytes(b"")
    checked = run("check", tmp_path / "manifest.json", "--json")
    assert checked.exit_code == 1
    problem = json.loads(checked.stdout)["problems"][0]
    assert (problem["file"], problem["example_id"]) == ("val-000000.tar", None)
    assert problem["reason"].startswith("0 bytes, the manifest says")


def test_build_mnist_with_classes_and_val(idx_folder, tmp_path):
    options = ("--name", "garments", "--classes", "fashion", "--num-val", 10, "--val-seed", 3, "--json")
    built = run("build", "mnist", idx_folder, tmp_path / "out", *options)
    summary = json.loads(built.stdout)
    assert {name: split["num_examples"] for name, split in summary["splits"].items()} == {
        "train": 30,
        "val": 10,
        "test": 12,
    }
    assert summary["notes"] == ["val: 10 training examples drawn by seed 3"]
    manifest = Manifest.load(summary["manifest"])
    assert (manifest.name, manifest.classes[-1]) == ("garments", "Ankle boot")
    named = run("build", "mnist", idx_folder, tmp_path / "named", "--classes", "a,b, c,d,e,f,g,h,i,j", "--json")
    assert Manifest.load(json.loads(named.stdout)["manifest"]).classes == tuple("abcdefghij")
    for classes, message in (("a,b", "label 9 must be 0 to 1: 2 classes"), ("a,,b", "at least two different names")):
        refused = run("build", "mnist", idx_folder, tmp_path / "refused", "--classes", classes)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert message in refused.stderr


def test_build_clothing_from_a_tar_lists_what_was_skipped(clothing, tmp_path):
    clothing.image(clothing.val[0]).unlink()
    tar = make_tar(clothing.root, tmp_path / "clothing.tar")
    refused = run("build", "clothing1m", tar, tmp_path / "out", "--name", "photos")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "1 of 5 examples of split 'val' cannot be used; max_bad_fraction 0.01 tolerates 0" in refused.stderr
    options = ("--name", "photos", "--max-bad-fraction", 0.2)
    built = run("build", "clothing1m", tar, tmp_path / "out", *options)
    assert built.exit_code == 0
    assert "photos: 3 classes" in built.stdout
    assert "2 of 22 noisy training keys are in val or test too" in built.stdout
    assert "skipped val" in built.stdout
    again = run("build", "clothing1m", tar, tmp_path / "out", *options)
    assert "nothing was changed" in again.stdout


def test_errors_are_one_line_and_exit_code_2(tmp_path):
    run("build", "digits", tmp_path / "digits")
    for arguments, message in [
        (("build", "clothing1m", tmp_path / "no", tmp_path / "out"), "there is no such folder or tar file"),
        (("build", "digits", tmp_path / "digits", "--seed", 1), "holds another build of data set 'digits'"),
        (("build", "digits", tmp_path / "out", "--corruption", "pairflip"), "must be symmetric:RATE"),
        (("build", "digits", tmp_path / "digits" / "manifest.json"), "is no folder; give a folder"),
        (("show", tmp_path / "manifest.json"), "there is no such file"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "corruption"),
    [
        ("symmetric:0.4", SymmetricCorruption(rate=0.4, seed=9)),
        ("pairflip:0.25", PairflipCorruption(rate=0.25, seed=9)),
        ("class_dependent:0.1,0.05", ClassDependentCorruption(k=0.1, beta=0.05, seed=9)),
    ],
)
def test_corruption_on_the_command_line(text, corruption):
    assert parse_corruption(text, 9) == corruption


@pytest.mark.parametrize(
    "text",
    [
        "", "pairflip", "pairflip:", "pairflip:1", "pairflip:0", "pairflip:nan", "pairflip:0.1,0.2", "unknown:0.1",
        "class_dependent:0.1", "class_dependent:0.1,0", "class_dependent:1,0.1", "class_dependent:0.1,0.1,0.1",
    ],
)  # fmt: skip
def test_bad_corruption_says_what_is_allowed(text):
    with pytest.raises(ValueError, match=r"must be symmetric:RATE or pairflip:RATE.* or class_dependent:K,BETA"):
        parse_corruption(text, 0)


def test_build_cifar_with_coarse_labels(tmp_path):
    raw = make_cifar100_python(tmp_path / "raw")
    options = ("--labels", "coarse", "--num-val", 2, "--corruption", "class_dependent:0.1,0.2", "--json")
    summary = json.loads(run("build", "cifar", raw, tmp_path / "out", *options).stdout)
    manifest = Manifest.load(summary["manifest"])
    assert (manifest.name, manifest.classes) == ("cifar100", ("machine", "animal"))
    assert {name: split.num_examples for name, split in manifest.splits.items()} == {"train": 5, "val": 2, "test": 5}
    assert manifest.recipe.corruption == ClassDependentCorruption(k=0.1, beta=0.2)
    assert np.allclose(manifest.recipe.transition_matrix, [[0.7, 0.3], [0.5, 0.5]])
    refused = run("build", "cifar", tmp_path, tmp_path / "refused")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    too_much = run("build", "cifar", raw, tmp_path / "refused", "--corruption", "class_dependent:0.9,0.05")
    assert (too_much.exit_code, too_much.stderr.count("\n")) == (2, 1)
    assert "k + beta * 3 = 1.05 must be below 1" in too_much.stderr


def test_build_image_folder(tmp_path):
    for number in range(8):
        picture = tmp_path / "raw" / ("cat" if number % 2 else "dog") / f"{number}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(encoded(photo(number, 40, 30)))
    options = ("--num-val", 2, "--are-clean", "--corruption", "symmetric:0.5", "--json")
    summary = json.loads(run("build", "image-folder", tmp_path / "raw", tmp_path / "out", *options).stdout)
    assert summary["name"] == "raw"
    assert {name: split["num_clean_labels"] for name, split in summary["splits"].items()} == {"train": 6, "val": 2}


def test_index_shards_of_somebody_else(clothing, tmp_path):
    folder = tmp_path / "shards"
    shards = build_clothing(clothing, folder)
    (folder / "manifest.json").unlink()
    names = tmp_path / "names.txt"
    names.write_text("\n".join(shards.classes), encoding="utf-8-sig")
    options = ("--label", "json:given_label", "--clean-label", "json:clean_label", "--json")
    summary = json.loads(run("build", "webdataset", folder, "--classes", f"@{names}", *options).stdout)
    assert (summary["name"], tuple(summary["classes"])) == ("shards", shards.classes)
    for split, before in shards.splits.items():
        assert summary["splits"][split]["class_counts"] == list(before.class_counts)
        assert summary["splits"][split]["num_clean_labels"] == before.num_clean_labels
    assert run("check", folder / "manifest.json").exit_code == 0
    for wrong, message in [
        (("--classes", "3", "--label", "pyd"), "must be the kind of a member"),
        (("--classes", "3", "--are-clean", "--clean-label", "cls"), "exclude each other"),
        (("--classes", "1"), "a number from 2 up"),
        (("--classes", "@nowhere.txt"), "nowhere.txt"),
        (("--classes", "3", "--are-clean"), "holds another build of data set 'shards'"),
        (("--classes", "2", "--max-bad-fraction", "0"), "cannot be used; max_bad_fraction 0 tolerates 0"),
    ]:
        refused = run("build", "webdataset", folder, *wrong)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert message in refused.stderr


def test_importing_the_commands_imports_nothing_heavy():
    code = (
        "import sys, data_pipeline.cli;"
        "print(sorted({'torch', 'cv2', 'sklearn', 'pyarrow', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def told_on_a_terminal(*arguments) -> str:
    """What a command writes to stderr where that is a terminal; nothing of it goes to stdout."""
    ours, theirs = pty.openpty()
    told = b""
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", "data", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"},
    ) as command:  # fmt: skip
        os.close(theirs)
        with suppress(OSError):  # once the other end is closed
            while piece := os.read(ours, 4096):
                told += piece
        os.close(ours)
        output, _ = command.communicate(timeout=60)
    assert command.returncode == 0
    assert b"\x1b[" not in output
    return told.decode()


def test_long_work_is_seen_on_a_terminal(tmp_path):
    built = told_on_a_terminal("build", "digits", tmp_path)
    assert all(text in built for text in ("listing", "train", "1297/1297", "test", "300/300"))
    checked = told_on_a_terminal("check", tmp_path / "manifest.json")
    assert all(text in checked for text in ("checking", "100%"))
    (tmp_path / "manifest.json").unlink()
    indexed = told_on_a_terminal("build", "webdataset", tmp_path, "--classes", "digits")
    assert all(text in indexed for text in ("reading", " MB", "0:00:00"))


def test_check_says_how_much_is_wrong_and_hides_no_file_behind_pictures(tmp_path):
    assert run("build", "digits", tmp_path).exit_code == 0
    sound = run("check", tmp_path / "manifest.json", "--decode")
    assert "all is as the manifest says: 3 shards with 1,797 pictures, each of which decodes" in sound.stdout
    shard = tmp_path / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:100_000])
    (tmp_path / "val-000000.tar").unlink()
    checked = run("check", tmp_path / "manifest.json")
    lines = checked.stdout.splitlines()
    assert lines[0].startswith("train-000000.tar: 100,000 bytes, the manifest says")
    assert lines[1] == "val-000000.tar: there is no such file"
    assert lines[2].startswith("train-000000.tar: digit-")
    assert lines[-3].endswith("more examples; --json lists all")
    assert lines[-2].endswith(" of 1,797 examples, 2 of its files")
    assert lines[-1].startswith("build it again by the same command")
    assert len(lines) == 2 + 10 + 1 + 2
