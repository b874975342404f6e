"""Reading folders of class folders."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import pytest
from sample_data import encoded, photo

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.examples import open_split
from data_pipeline.sources.image_folder import ImageFolder


def write(root: Path, *paths: str) -> dict[str, bytes]:
    """A different picture at each path."""
    contents = {}
    for number, path in enumerate(paths):
        file_format = "PNG" if path.lower().endswith("png") else "JPEG"
        contents[path] = encoded(photo(number, 40 + number, 30), file_format)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(contents[path])
    return contents


def listed(source: ImageFolder) -> list[tuple]:
    return [(e.split, e.example_id, e.suffix, e.given_label, e.clean_label) for e in source.examples()]


def test_splits_classes_and_order_follow_the_tree(tmp_path):
    contents = write(
        tmp_path / "pets",
        "train/dog/b.jpg", "train/dog/a.PNG", "train/cat/01/x.jpeg", "valid/cat/a.jpg", "test/owl/z.jpg",
    )  # fmt: skip
    source = ImageFolder(tmp_path / "pets")
    assert (source.name, source.classes) == ("pets", ("cat", "dog", "owl"))
    assert listed(source) == [
        ("train", "train-cat-01-x", "jpeg", 0, None),
        ("train", "train-dog-a", "png", 1, None),
        ("train", "train-dog-b", "jpg", 1, None),
        ("val", "valid-cat-a", "jpg", 0, None),
        ("test", "test-owl-z", "jpg", 2, None),
    ]
    assert {example.key: source.read(example) for example in source.examples()} == contents


def test_without_train_everything_is_train(tmp_path):
    write(tmp_path, "cat/a.jpg", "dog/a.jpg", "test/a.jpg")
    source = ImageFolder(tmp_path, "animals", are_clean=True)
    assert source.name == "animals"
    assert listed(source) == [
        ("train", "cat-a", "jpg", 0, 0),
        ("train", "dog-a", "jpg", 1, 1),
        ("train", "test-a", "jpg", 2, 2),
    ]


def test_val_is_held_out_by_its_seed(tmp_path):
    write(tmp_path, *(f"{name}/{number}.jpg" for name in ("cat", "dog") for number in range(10)))
    whole = {row[1:] for row in listed(ImageFolder(tmp_path))}
    first, again, other = (listed(ImageFolder(tmp_path, num_val=6, val_seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sum(row[0] == "val" for row in first) == 6
    assert {row[1:] for row in first} == whole
    assert ImageFolder(tmp_path, num_val=6, val_seed=1).notes == ("val: 6 training examples drawn by seed 1",)
    write(tmp_path / "split", "train/cat/a.jpg", "train/dog/a.jpg", "val/cat/a.jpg")
    with pytest.raises(ValueError, match=r"num_val 1: .* has a val of its own, so it must be 0"):
        ImageFolder(tmp_path / "split", num_val=1)


def test_names_that_do_not_fit_get_ids_all_the_same(tmp_path):
    odd = ["été 1.jpg", "a.b.jpg", "a.jpg", "a.png", f"{'long' * 30}1.jpg", f"{'long' * 30}2.jpg", "plain.jpg"]
    contents = write(tmp_path / "raw", *(f"cat/{name}" for name in odd), "cat-a/b.jpg", "cat/a-b.jpg")
    source = ImageFolder(tmp_path / "raw")
    by_path = {example.key: example.example_id for example in source.examples()}
    assert by_path["cat/plain.jpg"] == "cat-plain"
    assert by_path["cat/été 1.jpg"].startswith("cat-_t__1-")
    assert len(set(by_path.values())) == len(contents)
    manifest = build(source, tmp_path / "out", BuildOptions()).manifest
    assert manifest.splits["train"].num_examples == len(contents)
    assert set(open_split(manifest, "train").example_ids) == set(by_path.values())


def test_an_id_does_not_depend_on_what_else_is_there(tmp_path):
    write(tmp_path / "small", "cat/a b.jpg", "dog/a.jpg")
    write(tmp_path / "large", "cat/a b.jpg", "cat/0.jpg", "dog/a.jpg")
    small, large = (
        {e.key: e.example_id for e in ImageFolder(tmp_path / name).examples()} for name in ("small", "large")
    )
    assert small.items() < large.items()


def test_other_files_and_empty_folders_are_told_of(tmp_path):
    write(tmp_path, "cat/a.jpg", "dog/a.jpg")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / "more.txt").write_text("x")
    write(tmp_path, "cat/.copies/a.jpg", "dog/._a.jpg")
    write(tmp_path, *(f"{number}.jpg" for number in range(4)), ".hidden.jpg")
    (tmp_path / "readme.txt").write_text("beside the class folders")
    (tmp_path / "owl").mkdir()
    (tmp_path / ".git").mkdir()
    source = ImageFolder(tmp_path)
    suffixes = "files count as pictures by their suffix: jpg, jpeg, png, webp, gif, bmp"
    assert source.notes == (
        f"left out, as they are no pictures: 2 files, cat/more.txt, cat/notes.txt ({suffixes})",
        "left out, as they lie in no class folder: 4 files, 0.jpg, 1.jpg, 2.jpg, …",
        "classes without a training example: owl",
    )
    assert source.classes == ("cat", "dog", "owl")
    assert [example.key for example in source.examples()] == ["cat/a.jpg", "dog/a.jpg"]


def test_unreadable_pictures_are_skipped_and_listed(tmp_path):
    contents = write(tmp_path / "raw", "cat/a.jpg", "dog/a.jpg", "dog/b.jpg")
    (tmp_path / "raw/cat/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "raw/cat/linked.jpg").symlink_to(tmp_path / "raw/dog/a.jpg")
    (tmp_path / "raw/cat/loop").symlink_to(tmp_path / "raw/cat")
    (tmp_path / "raw/dog/text.jpg").write_text("no picture")
    manifest = build(ImageFolder(tmp_path / "raw"), tmp_path / "out", BuildOptions(max_bad_fraction=0.4)).manifest
    assert manifest.splits["train"].num_examples == len(contents) + 1
    assert {example.example_id for example in manifest.skipped} == {"cat-gone", "dog-text"}


def test_pictures_are_found_again_by_their_path(tmp_path):
    odd = "größe & Ko/kaputt (1).jpg"
    write(tmp_path / "raw", "cat/a.jpg", odd, "größe & Ko/b\udcff.jpg")
    (tmp_path / "raw" / odd).write_text("no picture")
    manifest = build(ImageFolder(tmp_path / "raw"), tmp_path / "out", BuildOptions(max_bad_fraction=0.4)).manifest
    assert [skipped.reason for skipped in manifest.skipped] == [f"{odd}: not a known image format (10 bytes)"]
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        notes = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]
    assert {note["file"] for note in notes} == {"cat/a.jpg", r"größe & Ko/b\udcff.jpg"}


def test_classes_that_nothing_trains_are_told_of(tmp_path):
    write(tmp_path, "train/cat/a.jpg", "train/dog/a.jpg", "test/owl/a.jpg", "stray.jpg", "train/stray.png")
    assert ImageFolder(tmp_path).notes == (
        "left out, as they lie in no class folder: 2 files, stray.jpg, train/stray.png",
        "classes without a training example: owl",
    )
    write(tmp_path / "held_out", "cat/a.jpg", "dog/a.jpg")
    assert ImageFolder(tmp_path / "held_out", num_val=1).notes[1].startswith("classes without a training example: ")


def test_folders_without_a_picture_say_what_is_one(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"holds no picture to train on; .* suffix: jpg, jpeg, png, webp, gif, bmp$"):
        ImageFolder(tmp_path)
    (tmp_path / "cat" / "a.tiff").write_bytes(b"")
    with pytest.raises(ValueError, match=r"bmp; left out: 1 file, cat/a\.tiff$"):
        ImageFolder(tmp_path)


def test_a_copy_for_another_process_reads(tmp_path):
    contents = write(tmp_path, "cat/a.jpg", "dog/a.jpg")
    source = ImageFolder(tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.name, copy.classes) == (source.name, source.classes)
    assert {example.key: copy.read(example) for example in source.examples()} == contents


def test_what_is_no_folder_of_class_folders_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        ImageFolder(tmp_path / "no")
    write(tmp_path / "one", "cat/a.jpg")
    with pytest.raises(ValueError, match="a folder for each of two classes or more"):
        ImageFolder(tmp_path / "one")
    write(tmp_path / "halves", "val/cat/a.jpg", "val/dog/a.jpg", "test/cat/a.jpg")
    with pytest.raises(ValueError, match="or train/ with such folders"):
        ImageFolder(tmp_path / "halves")
    write(tmp_path / "odd", "train/cat/a.jpg", "train/dog/a.jpg", "extra/cat/a.jpg")
    with pytest.raises(ValueError, match=r"holds train/ and extra/; beside train/ only train, val, valid, validation"):
        ImageFolder(tmp_path / "odd")
    write(tmp_path / "two", "train/cat/a.jpg", "train/dog/a.jpg", "val/cat/a.jpg", "valid/cat/a.jpg")
    with pytest.raises(ValueError, match="holds both val/ and valid/"):
        ImageFolder(tmp_path / "two")
