"""Reading idx files: MNIST's form."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from sample_data import idx_arrays, idx_file

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.check import check
from data_pipeline.examples import open_split
from data_pipeline.manifest import Manifest
from data_pipeline.pictures import decode
from data_pipeline.reading.reader import ShardReader
from data_pipeline.sources.mnist import DIGIT_CLASSES, FASHION_CLASSES, Mnist
from data_pipeline.spec import SymmetricCorruption

REAL = Path(__file__).parents[4] / "shared" / "data" / "fashion-mnist"
NUM_TRAIN, NUM_TEST = 40, 12
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def by_split(source: Mnist) -> dict[str, list]:
    examples = list(source.examples())
    return {split: [e for e in examples if e.split == split] for split in ("train", "val", "test")}


def test_examples_are_those_of_the_files_in_their_order(idx_folder):
    splits = by_split(Mnist(idx_folder))
    assert [e.example_id for e in splits["train"]] == [f"train-{row:05d}" for row in range(NUM_TRAIN)]
    assert [e.example_id for e in splits["test"]] == [f"test-{row:05d}" for row in range(NUM_TEST)]
    assert splits["val"] == []
    for split, labels in (("train", TRAIN_LABELS), ("test", TEST_LABELS)):
        expected = idx_arrays()[labels].tolist()
        assert [e.given_label for e in splits[split]] == expected
        assert [e.clean_label for e in splits[split]] == expected


def test_pictures_keep_every_pixel(idx_folder):
    source = Mnist(idx_folder, num_val=10)
    for split, examples in by_split(source).items():
        pixels = idx_arrays()[TEST_IMAGES if split == "test" else TRAIN_IMAGES]
        for example in examples:
            image_HWC = decode.decode(source.read(example))
            expected_HW = pixels[int(example.example_id.split("-")[1])]
            assert np.array_equal(image_HWC, np.repeat(expected_HW[:, :, None], 3, axis=2))


def test_val_is_held_out_of_train_by_its_seed(idx_folder):
    whole = {e.example_id: e.given_label for e in by_split(Mnist(idx_folder))["train"]}
    first, again, other = (by_split(Mnist(idx_folder, num_val=15, val_seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert {e.example_id for e in first["val"]} != {e.example_id for e in other["val"]}
    assert len(first["val"]) == 15
    assert [e.example_id for e in first["train"] + first["val"]] != list(whole)
    assert {e.example_id: e.given_label for e in first["train"] + first["val"]} == whole
    assert first["test"] == other["test"]


def test_names_with_a_dot_are_found_too(idx_folder):
    for name in (TRAIN_IMAGES, TRAIN_LABELS):
        (idx_folder / name).rename(idx_folder / name.replace("-idx", ".idx"))
    assert len(by_split(Mnist(idx_folder))["train"]) == NUM_TRAIN


def test_noise_goes_into_train_only_and_everything_reads_back(idx_folder, tmp_path):
    corruption = SymmetricCorruption(rate=0.5)
    source = Mnist(idx_folder, "tiny", FASHION_CLASSES, num_val=10)
    manifest = build(source, tmp_path / "out", BuildOptions(shard_size=16, corruption=corruption)).manifest
    assert (manifest.name, manifest.classes) == ("tiny", FASHION_CLASSES)
    assert {name: split.num_examples for name, split in manifest.splits.items()} == {"train": 30, "val": 10, "test": 12}
    for split in manifest.splits:
        table = open_split(manifest, split)
        wrong = int((table.given_labels != table.clean_labels).sum())
        assert wrong > 5 if split == "train" else wrong == 0
        with closing(ShardReader(table)) as reader:
            for row, example_id in enumerate(table.example_ids):
                pixels = idx_arrays()[TEST_IMAGES if split == "test" else TRAIN_IMAGES]
                assert np.array_equal(decode.decode(reader.read(row))[:, :, 1], pixels[int(example_id.split("-")[1])])


def test_no_val_is_no_split(idx_folder, tmp_path):
    manifest = build(Mnist(idx_folder), tmp_path / "out", BuildOptions()).manifest
    assert {name: split.num_examples for name, split in manifest.splits.items()} == {"train": 40, "test": 12}
    assert check(Manifest.load(tmp_path / "out" / "manifest.json")) == []


def cut(data: bytes) -> bytes:
    return data[:-1]


BAD_FILES = {
    "no such file": (TRAIN_LABELS, lambda _: None, "no train-labels-idx1-ubyte, gzipped"),
    "nothing in it": (TRAIN_IMAGES, lambda _: b"", "begins with 0x, must be 0x00000803"),
    "labels for pictures": (TRAIN_IMAGES, lambda _: idx_file(idx_arrays()[TRAIN_LABELS]), "begins with 0x00000801"),
    "not bytes": (TRAIN_LABELS, lambda data: b"\0\0\x0d\x01" + data[4:], "begins with 0x00000d01, must be 0x00000801"),
    "half a header": (TRAIN_IMAGES, lambda data: data[:9], "ends inside its header, after 9 of 16 bytes"),
    "cut": (TRAIN_IMAGES, cut, "holds 1,199 bytes of data, its header says 40 x 6 x 5 = 1,200"),
    "too long": (TRAIN_LABELS, lambda data: data + b"\0", "holds 41 bytes of data, its header says 40 = 40"),
    "a header of terabytes": (TRAIN_LABELS, lambda data: data[:4] + b"\xff" * 4 + data[8:], "= 4,294,967,295"),
    "no pixels": (TRAIN_IMAGES, lambda _: idx_file(np.zeros((40, 0, 5), np.uint8)), "40 x 0 x 5 holds no pixels"),
    "another number of labels": (
        TRAIN_LABELS,
        lambda _: idx_file(idx_arrays()[TRAIN_LABELS][:-1]),
        "train has 40 pictures, but 39 labels",
    ),
    "a label too many": (TRAIN_LABELS, lambda data: data[:-1] + b"\x0a", "label 10 must be 0 to 9: 10 classes"),
    "no gzip": (f"{TEST_IMAGES}.gz", lambda _: b"plain", "is no whole gzip file"),
    "cut gzip": (f"{TEST_IMAGES}.gz", cut, "is no whole gzip file"),
    "a flipped bit": (
        f"{TEST_LABELS}.gz",
        lambda data: data[:-6] + bytes((data[-6] ^ 1,)) + data[-5:],
        "is no whole gzip file: CRC",
    ),
}


@pytest.mark.parametrize(("file", "broken", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused_by_name(idx_folder, file, broken, message):
    path = idx_folder / file
    data = broken(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        Mnist(idx_folder)
    assert str(idx_folder) in str(error.value)


def test_bad_arguments_say_what_is_allowed(idx_folder):
    with pytest.raises(ValueError, match="no such folder"):
        Mnist(idx_folder / "no")
    for num_val in (-1, NUM_TRAIN):
        with pytest.raises(ValueError, match=f"num_val {num_val} must be 0 to 39"):
            Mnist(idx_folder, num_val=num_val)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"Fashion-MNIST is not at {REAL}")
def test_fashion_mnist_is_as_published():
    source = Mnist(REAL, "fashion-mnist", FASHION_CLASSES, num_val=5000)
    splits = by_split(source)
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 55_000,
        "val": 5000,
        "test": 10_000,
    }
    for examples in (splits["train"] + splits["val"], splits["test"]):
        counts = np.bincount([e.given_label for e in examples])
        assert counts.tolist() == [len(examples) // 10] * 10
    first = splits["test"][0]
    assert source.classes[first.given_label] == "Ankle boot"
    assert decode.image_shape(source.read(first)) == (28, 28)


def test_default_classes_are_the_digits(idx_folder):
    assert Mnist(idx_folder).classes == DIGIT_CLASSES
