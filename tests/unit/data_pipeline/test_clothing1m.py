"""Reading Clothing1M's layout, from a folder and from a tar of it."""

from __future__ import annotations

import gzip
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from sample_data import make_tar

from data_pipeline.sources import clothing1m
from data_pipeline.sources.clothing1m import ORIGINAL, Clothing1M, Sizes, example_id_of


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


def test_lists_may_come_from_another_system(clothing):
    with Clothing1M(clothing.root) as source:
        expected = source.classes, list(source.examples())
    for path in clothing.root.glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    with Clothing1M(clothing.root) as source:
        assert (source.classes, list(source.examples())) == expected


def test_notes_hold_the_sizes_against_the_original_and_count_both_labels(clothing):
    with Clothing1M(clothing.root) as source:
        sizes, left_out, both = source.notes
    assert (
        sizes == f"lists 3 classes, 22 noisy_train, 3 clean_train, 5 clean_val, 6 clean_test; Clothing1M has {ORIGINAL}"
    )
    assert left_out == "2 of 22 noisy training keys are in val or test too and were left out"
    assert both.startswith("3 training examples have a clean label too, which differs in 3; 0 clean training keys")
    with (clothing.root / "clean_train_key_list.txt").open("a") as file:
        file.write("images/0/00/elsewhere.jpg\n")
    clothing.clean[clothing.train[0]] = clothing.noisy[clothing.train[0]]
    (clothing.root / "clean_label_kv.txt").write_text("".join(f"{key} {y}\n" for key, y in clothing.clean.items()))
    with Clothing1M(clothing.root) as source:
        assert source.notes[2].startswith("3 training examples have a clean label too, which differs in 2; 1 clean")


def test_the_original_sizes_are_the_published_ones():
    assert str(ORIGINAL) == (
        "14 classes, 1,000,000 noisy_train, 47,570 clean_train, 14,313 clean_val, 10,526 clean_test"
    )


def test_only_the_original_passes_as_the_original(clothing, monkeypatch):
    with pytest.raises(ValueError, match=r"lists 3 classes, 22 noisy_train.*Clothing1M itself has 14 classes"):
        Clothing1M(clothing.root, only_original=True)
    monkeypatch.setattr(clothing1m, "ORIGINAL", Sizes(3, 22, 3, 5, 6))
    with Clothing1M(clothing.root, only_original=True) as source:
        assert source.notes[0].endswith("6 clean_test: as Clothing1M")


def test_a_copy_for_another_process_reads_but_carries_no_lists(clothing, tmp_path):
    for path in (clothing.root, make_tar(clothing.root, tmp_path / "clothing.tar")):
        with Clothing1M(path) as source:
            pickled = pickle.dumps(source)
            assert b"noisy_labels" not in pickled
            with pickle.loads(pickled) as copy:
                assert (copy.name, copy.classes, copy.notes) == (source.name, source.classes, source.notes)
                for example in source.examples():
                    assert copy.read(example) == clothing.image(example.key).read_bytes()


def test_threads_may_read_a_tar_at_the_same_time(clothing, tmp_path):
    with Clothing1M(make_tar(clothing.root, tmp_path / "clothing.tar")) as source, ThreadPoolExecutor(8) as threads:
        examples = list(source.examples()) * 20
        for example, data in zip(examples, threads.map(source.read, examples), strict=True):
            assert data == clothing.image(example.key).read_bytes()


@pytest.mark.parametrize("prefix", ["", "./", "some/where/"])
def test_a_tar_reads_as_the_folder_does(clothing, tmp_path, prefix):
    tar = make_tar(clothing.root, tmp_path / "clothing.tar", prefix)
    with Clothing1M(tar) as from_tar, Clothing1M(clothing.root) as from_folder:
        examples = list(from_tar.examples())
        assert examples == list(from_folder.examples())
        for example in examples:
            assert from_tar.read(example) == clothing.image(example.key).read_bytes()


def test_a_tar_that_is_cut_while_it_is_read_has_lost_its_pictures(clothing, tmp_path):
    path = make_tar(clothing.root, tmp_path / "clothing.tar")
    with Clothing1M(path) as source:
        examples = list(source.examples())
        with path.open("r+b") as file:
            file.truncate(1000)
        for example in examples:
            with pytest.raises(OSError, match="The tar file ends inside it"):
                source.read(example)


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
    "key",
    [
        "images/../../etc/passwd.jpg",
        "images/0/.jpg",
        "/images/a.jpg",
        "a.jpg",
        "images/0/00/a.txt",
        "images.jpg",
    ],
)
def test_keys_that_are_no_pictures_below_images_are_refused(key):
    with pytest.raises(ValueError, match="must be a path below images/"):
        example_id_of(key)


@pytest.mark.parametrize(
    "line", ["images/0/00/a.jpg", "images/0/00/a.jpg 1234567890", "images/0/00/a.jpg -1", "images/0/00/a.jpg x"]
)
def test_a_broken_label_line_is_named(clothing, line):
    with (clothing.root / "noisy_label_kv.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"noisy_label_kv\.txt, entry 23: .* must be `<key> <label>`, labels 0 to 2"):
        Clothing1M(clothing.root)


def test_a_key_without_label_has_none(clothing):
    del clothing.noisy[clothing.train[7]]
    clothing.write_lists()
    with Clothing1M(clothing.root) as source:
        assert [example.key for example in source.examples() if example.given_label is None] == [clothing.train[7]]


@pytest.mark.parametrize("where", ["between two members", "in a header", "in a picture", "before the end"])
def test_a_tar_that_was_cut_is_refused(clothing, tmp_path, where):
    path = make_tar(clothing.root, tmp_path / "clothing.tar")
    with tarfile.open(path) as tar:
        *_, before, last = [member for member in tar if member.isreg()]
    end = {
        "between two members": last.offset,
        "in a header": last.offset + 100,
        "in a picture": before.offset_data + 100,
        "before the end": last.offset_data + -(-last.size // 512) * 512,
    }
    with path.open("r+b") as file:
        file.truncate(end[where])
    with pytest.raises(ValueError, match=r"clothing\.tar is (damaged or cut: at byte|no whole, uncompressed tar file)"):
        Clothing1M(path)


def test_what_is_not_in_this_layout_is_refused(clothing, tmp_path):
    with pytest.raises(ValueError, match="there is no such folder or tar"):
        Clothing1M(tmp_path / "nothing")
    (clothing.root / "clean_val_key_list.txt").unlink()
    with pytest.raises(ValueError, match=r"clean_val_key_list\.txt: No such file"):
        Clothing1M(clothing.root)
    packed = tmp_path / "clothing.tar.gz"
    packed.write_bytes(gzip.compress(make_tar(clothing.root, tmp_path / "clothing.tar").read_bytes()))
    with pytest.raises(ValueError, match="no whole, uncompressed tar"):
        Clothing1M(packed)
    with pytest.raises(ValueError, match=r"must hold one category_names_eng\.txt; it holds 0"):
        Clothing1M(make_tar(clothing.root / "images", tmp_path / "images.tar"))
