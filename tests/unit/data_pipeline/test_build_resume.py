"""A build that is killed goes on: finished shards are kept, a torn one is written anew, and the bytes are the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sample_data import build_clothing, build_digits

from data_pipeline.building.build import BuildOptions, Progress, build
from data_pipeline.sources.base import SourceExample
from data_pipeline.sources.clothing1m import Clothing1M, example_id_of
from data_pipeline.sources.digits import Digits

OPTIONS = BuildOptions(shard_size=200, num_processes=1)
KILLED_IN_VAL = f"""
import os, pathlib, sys
from data_pipeline.building.build import BuildOptions, build
from data_pipeline.sources.digits import Digits
def die(progress):
    if progress.split == "val":
        os.kill(os.getpid(), 9)
build(Digits(), pathlib.Path(sys.argv[1]), {OPTIONS!r}, die)
"""


class CountedDigits(Digits):
    """Remembers which pictures were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_ids: list[str] = []

    def read(self, example: SourceExample) -> bytes:
        self.read_ids.append(example.example_id)
        return super().read(example)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """What a build that nothing disturbs makes."""
    folder = tmp_path_factory.mktemp("whole")
    build(Digits(), folder, OPTIONS)
    return content_of(folder)


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory) -> Path:
    """Killed in its last split but one: seven shards of train are finished, one of val is not."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, "-c", KILLED_IN_VAL, folder], check=False)
    assert done.returncode == -9
    assert not (folder / "manifest.json").exists()
    assert {path.name for path in folder.glob("*.tar")} == {f"train-{number:06d}.tar" for number in range(7)}
    return folder


@pytest.fixture
def killed(killed_once, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(killed_once, tmp_path / "killed"))


def resume(out: Path, options: BuildOptions = OPTIONS) -> CountedDigits:
    source = CountedDigits()
    assert build(source, out, options).is_new
    return source


def test_finished_shards_are_kept(killed, whole):
    assert len(resume(killed).read_ids) == 500
    assert content_of(killed) == whole


def test_how_many_shards_were_kept_is_told(killed):
    assert build(Digits(), killed, OPTIONS).num_kept == 7
    assert build(Digits(), killed, OPTIONS).num_kept == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "index gone", "note torn", "note gone"])
def test_a_torn_shard_is_written_anew(killed, whole, damage):
    tar, note = killed / "train-000003.tar", killed / ".building" / "train-000003.json"
    content = tar.read_bytes()
    match damage:
        case "cut":
            tar.write_bytes(content[:-10240])
        case "flipped":
            tar.write_bytes(content[:700] + bytes([content[700] ^ 1]) + content[701:])
        case "gone":
            tar.unlink()
        case "index gone":
            (killed / "train-000003.index.arrow").unlink()
        case "note torn":
            note.write_bytes(note.read_bytes()[:50])
        case "note gone":
            note.unlink()
    assert len(resume(killed).read_ids) == 500 + 200
    assert content_of(killed) == whole


def test_shards_of_another_recipe_are_not_kept_and_leave_nothing(killed, tmp_path_factory):
    options = BuildOptions(shard_size=900, seed=5, num_processes=1)
    assert len(resume(killed, options).read_ids) == 1797
    other = tmp_path_factory.mktemp("other")
    build(Digits(), other, options)
    assert content_of(killed) == content_of(other)


def test_pictures_that_were_away_are_asked_for_again(clothing, tmp_path):
    lost, damaged = clothing.train[4], clothing.train[7]
    picture = clothing.image(lost).read_bytes()
    clothing.image(lost).unlink()
    clothing.image(damaged).write_bytes(b"no picture")

    def stop(progress: Progress) -> None:
        if progress.split == "test":
            raise KeyboardInterrupt

    options = BuildOptions(shard_size=8, max_bad_fraction=0.1)
    with Clothing1M(clothing.root) as source:
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path / "out", options, stop)
        clothing.image(lost).write_bytes(picture)
        manifest = build(source, tmp_path / "out", options).manifest
    assert [example.example_id for example in manifest.skipped] == [example_id_of(damaged)[0]]
    build_clothing(clothing, tmp_path / "at_once")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "at_once")


def test_shards_of_other_labels_are_not_kept(clothing, tmp_path):
    def stop(progress: Progress) -> None:
        if progress.split == "test":
            raise KeyboardInterrupt

    options = BuildOptions(shard_size=8)
    with Clothing1M(clothing.root) as source, pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "out", options, stop)
    clothing.noisy[clothing.train[0]] = 2
    clothing.write_lists()
    build_clothing(clothing, tmp_path / "out", options)
    build_clothing(clothing, tmp_path / "at_once", options)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "at_once")


def test_a_forced_build_that_is_killed_goes_on_and_leaves_nothing_of_the_old_set(killed, whole):
    build_clothing_like = BuildOptions(shard_size=50, force=True)
    build_digits(killed, build_clothing_like)
    assert len(list(killed.glob("train-*.tar"))) == 26
    done = subprocess.run(
        [sys.executable, "-c", KILLED_IN_VAL.replace("force=False", "force=True"), killed], check=False
    )
    assert done.returncode == -9
    assert not (killed / "manifest.json").exists()
    assert len(resume(killed).read_ids) == 500
    assert content_of(killed) == whole


@pytest.mark.parametrize(("name", "options"), [
    ("shard_size", BuildOptions(shard_size=0)), ("num_processes", BuildOptions(num_processes=0)),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(tmp_path, name, options):
    with pytest.raises(ValueError, match=f"{name} 0 must be at least 1"):
        build(Digits(), tmp_path, options)


KILLED_IN_A_RENAME = f"""
import os, pathlib, sys
from data_pipeline.building.build import BuildOptions, build
from data_pipeline.sources.digits import Digits
def die(source, target):
    os.kill(os.getpid(), 9)
def on_progress(progress):
    if progress.split == sys.argv[2]:
        pathlib.Path.replace = die
build(Digits(), pathlib.Path(sys.argv[1]), {OPTIONS!r}, on_progress)
"""


@pytest.mark.parametrize("split", ["train", "val"])
def test_files_that_a_kill_left_without_a_name_are_removed(whole, tmp_path, split):
    done = subprocess.run([sys.executable, "-c", KILLED_IN_A_RENAME, tmp_path, split], check=False)
    assert done.returncode == -9
    assert list(tmp_path.rglob(".*.part"))
    (tmp_path / ".mine.part").write_text("no file of ours")
    build(Digits(), tmp_path, OPTIONS)
    (tmp_path / ".mine.part").unlink()
    assert content_of(tmp_path) == whole
