"""Reading Clothing1M's layout, from a folder and from a tar of it."""

from __future__ import annotations

import gzip

import pytest
from sample_data import make_tar

from data_pipeline.sources.clothing1m import Clothing1M, example_id_of


def test_splits_labels_and_order_follow_the_lists(clothing):
    with Clothing1M(clothing.root) as source:
        examples = list(source.examples())
        assert source.classes == ("T-Shirt", "Shirt", "Knitwear")
    keys = {split: [e.key for e in examples if e.split == split] for split in ("train", "val", "test")}
    held_out = {*clothing.val, *clothing.test}
    assert keys["train"] == [key for key in clothing.train if key not in held_out]
    assert len(keys["train"]) == len(clothing.train) - 2
    assert (keys["val"], keys["test"]) == (clothing.val, clothing.test)
    for example in examples:
        assert example.clean_label == clothing.clean.get(example.key)
        labels = clothing.noisy if example.split == "train" else clothing.clean
        assert example.given_label == labels[example.key]


def test_left_out_training_keys_are_reported(clothing):
    with Clothing1M(clothing.root) as source:
        assert source.notes == ("2 of 22 noisy training keys are in val or test too and were left out",)


@pytest.mark.parametrize("prefix", ["", "./", "some/where/"])
def test_a_tar_reads_as_the_folder_does(clothing, tmp_path, prefix):
    tar = make_tar(clothing.root, tmp_path / "clothing.tar", prefix)
    with Clothing1M(tar) as from_tar, Clothing1M(clothing.root) as from_folder:
        examples = list(from_tar.examples())
        assert examples == list(from_folder.examples())
        for example in examples:
            assert from_tar.read(example) == clothing.image(example.key).read_bytes()


@pytest.mark.parametrize(
    ("key", "example_id", "suffix"),
    [
        ("images/8/47/c6fd5889-2696.jpg", "8-47-c6fd5889-2696", "jpg"),
        ("images/0/00/1001048,3298523456.JPG", "0-00-1001048,3298523456", "jpg"),
        ("images/0/00/a.b.png", "0-00-a_b", "png"),
    ],
)
def test_example_id_is_the_key_without_slashes_and_dots(key, example_id, suffix):
    assert example_id_of(key) == (example_id, suffix)


@pytest.mark.parametrize(
    "key", ["images/../../etc/passwd.jpg", "/images/a.jpg", "a.jpg", "images/0/00/a.txt", "images.jpg"]
)
def test_keys_that_are_no_pictures_below_images_are_refused(key):
    with pytest.raises(ValueError, match="must be a path below images/"):
        example_id_of(key)


@pytest.mark.parametrize(
    "line", ["images/0/00/a.jpg", "images/0/00/a.jpg 3", "images/0/00/a.jpg -1", "images/0/00/a.jpg x"]
)
def test_a_broken_label_line_is_named(clothing, line):
    with (clothing.root / "noisy_label_kv.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"noisy_label_kv\.txt, entry 23: .* must be `<key> <label>`, labels 0 to 2"):
        Clothing1M(clothing.root)


def test_a_key_without_label_is_named(clothing):
    del clothing.noisy[clothing.train[7]]
    clothing.write_lists()
    with Clothing1M(clothing.root) as source, pytest.raises(ValueError, match=f"{clothing.train[7]}.*has no label"):
        list(source.examples())


def test_what_is_not_in_this_layout_is_refused(clothing, tmp_path):
    with pytest.raises(ValueError, match="there is no such folder or tar"):
        Clothing1M(tmp_path / "nothing")
    (clothing.root / "clean_val_key_list.txt").unlink()
    with pytest.raises(ValueError, match=r"clean_val_key_list\.txt: No such file"):
        Clothing1M(clothing.root)
    packed = tmp_path / "clothing.tar.gz"
    packed.write_bytes(gzip.compress(make_tar(clothing.root, tmp_path / "clothing.tar").read_bytes()))
    with pytest.raises(ValueError, match="no uncompressed tar"):
        Clothing1M(packed)
    with pytest.raises(ValueError, match=r"must hold one category_names_eng\.txt; it holds 0"):
        Clothing1M(make_tar(clothing.root / "images", tmp_path / "images.tar"))
