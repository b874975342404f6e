"""Reading CIFAR-10 and CIFAR-100 in the python and the binary form."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from cifar_files import (
    CLASSES,
    COARSE,
    NUM_BATCH,
    NUM_TEST,
    coarse,
    fine,
    make_cifar10_binary,
    make_cifar10_python,
    make_cifar100_binary,
    make_cifar100_python,
    pixels,
)

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.examples import open_split
from data_pipeline.label_corruption import corrupt
from data_pipeline.pictures import decode
from data_pipeline.sources.cifar import Cifar
from data_pipeline.spec import PairflipCorruption

FORMS = {
    "cifar10 python": (make_cifar10_python, "cifar10", 5),
    "cifar10 binary": (make_cifar10_binary, "cifar10", 5),
    "cifar100 python": (make_cifar100_python, "cifar100", 1),
    "cifar100 binary": (make_cifar100_binary, "cifar100", 1),
}


def by_split(source: Cifar) -> dict[str, list]:
    examples = list(source.examples())
    return {split: [e for e in examples if e.split == split] for split in ("train", "val", "test")}


@pytest.mark.parametrize(("make", "name", "num_batches"), FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_examples_and_every_pixel(tmp_path, make, name, num_batches):
    source = Cifar(make(tmp_path / "raw"))
    assert (source.name, source.classes, source.notes) == (name, CLASSES, ())
    splits = by_split(source)
    expected = {
        "train": [
            (label, row)
            for batch in range(num_batches)
            for label, row in zip(fine(batch, NUM_BATCH), pixels(batch, NUM_BATCH), strict=True)
        ],
        "val": [],
        "test": list(zip(fine(num_batches, NUM_TEST), pixels(num_batches, NUM_TEST), strict=True)),
    }
    for split, examples in splits.items():
        assert [e.example_id for e in examples] == [f"{split}-{row:05d}" for row in range(len(expected[split]))]
        for example, (label, row) in zip(examples, expected[split], strict=True):
            assert (example.given_label, example.clean_label) == (label, label)
            red, green, blue = row.reshape(3, 32, 32)
            assert np.array_equal(decode.decode(source.read(example)), np.stack([red, green, blue], axis=2))


@pytest.mark.parametrize("make", [make_cifar100_python, make_cifar100_binary])
def test_coarse_labels_of_cifar100(tmp_path, make):
    source = Cifar(make(tmp_path / "raw"), "superclasses", labels="coarse")
    assert (source.name, source.classes) == ("superclasses", COARSE)
    assert [e.given_label for e in by_split(source)["train"]] == coarse(fine(0, NUM_BATCH))


@pytest.mark.parametrize("make", [make_cifar10_python, make_cifar10_binary])
def test_cifar10_has_no_coarse_labels(tmp_path, make):
    with pytest.raises(ValueError, match=r"labels 'coarse': .* holds cifar10, which has fine labels only"):
        Cifar(make(tmp_path / "raw"), labels="coarse")


def test_val_is_held_out_of_train_by_its_seed(tmp_path):
    folder = make_cifar10_binary(tmp_path / "raw")
    whole = {e.example_id: e.given_label for e in by_split(Cifar(folder))["train"]}
    first, again, other = (by_split(Cifar(folder, num_val=9, val_seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert {e.example_id for e in first["val"]} != {e.example_id for e in other["val"]}
    assert len(first["val"]) == 9
    assert {e.example_id: e.given_label for e in first["train"] + first["val"]} == whole
    assert Cifar(folder, num_val=9, val_seed=1).notes == ("val: 9 training examples drawn by seed 1",)
    with pytest.raises(ValueError, match="num_val 35 must be 0 to 34"):
        Cifar(folder, num_val=35)


def test_pairflip_draws_in_the_order_of_the_batches(tmp_path):
    """Co-teaching+ corrupts the labels of data_batch_1 to 5 in a row."""
    corruption = PairflipCorruption(rate=0.4)
    source = Cifar(make_cifar10_python(tmp_path / "raw"))
    manifest = build(source, tmp_path / "out", BuildOptions(shard_size=16, corruption=corruption)).manifest
    table = open_split(manifest, "train")
    in_order = table.select(np.argsort(table.ordinals))
    labels = np.array([label for batch in range(5) for label in fine(batch, NUM_BATCH)])
    assert in_order.given_labels.tolist() == corrupt(labels, 3, corruption).tolist()
    assert in_order.clean_labels.tolist() == labels.tolist()
    assert manifest.recipe.transition_matrix == ((0.6, 0.4, 0.0), (0.0, 0.6, 0.4), (0.4, 0.0, 0.6))


def test_a_folder_without_any_form_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        Cifar(tmp_path / "no")
    with pytest.raises(ValueError, match="none of CIFAR-10's or CIFAR-100's files"):
        Cifar(tmp_path)
    folder = make_cifar10_binary(tmp_path / "raw")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(ValueError, match=r"not all of cifar10: it lacks data_batch_4\.bin$"):
        Cifar(folder)


BINARY_FILES = {
    "cut": (
        "data_batch_2.bin",
        lambda data: data[:-1],
        r"data_batch_2\.bin: 21,510 bytes, must be a multiple of 3,073",
    ),
    "empty": ("test_batch.bin", lambda _: b"", r"test_batch\.bin: 0 bytes, must be a multiple"),
    "a label too many": ("test_batch.bin", lambda data: b"\x03" + data[1:], "test has label 3, must be 0 to 2"),
    "one class": ("batches.meta.txt", lambda _: b"one\n", "at least two class names"),
}
PYTHON_FILES = {
    "cut": ("data_batch_2", lambda data: data[:-1], "data_batch_2: is no whole pickle"),
    "empty": ("test_batch", lambda _: b"", "test_batch: is no whole pickle"),
    "code": ("test_batch", lambda _: b"cos\nsystem\n(S'true'\ntR.", r"asks for 'os\.system', which is neither"),
    "no dict": ("test_batch", lambda _: b"]q\x00.", "holds no dict"),
    "no labels": ("data_batch_3", lambda data: data.replace(b"U\x06labels", b"U\x06labele"), "has no 'labels' that is"),
    "labels of text": ("test_batch", lambda data: data.replace(b"](K", b"](NK", 1), "labels and pixels of"),
    "a label of text": ("test_batch", lambda data: data.replace(b"](K\x00", b"](U\x01a", 1), "a label is no number"),
    "no pixels": (
        "test_batch",
        lambda data: data.replace(b"U\x04data", b"U\x04dada"),
        "has no 'data' that is a ndarray",
    ),
    "names of numbers": ("batches.meta", lambda data: data.replace(b"U\x03cat", b"K\x01"), "class names"),
}


@pytest.mark.parametrize(("file", "broken", "message"), BINARY_FILES.values(), ids=BINARY_FILES)
def test_bad_binary_files_are_refused_by_name(tmp_path, file, broken, message):
    refuses(make_cifar10_binary(tmp_path / "raw"), file, broken, message)


@pytest.mark.parametrize(("file", "broken", "message"), PYTHON_FILES.values(), ids=PYTHON_FILES)
def test_bad_python_files_are_refused_by_name(tmp_path, file, broken, message):
    refuses(make_cifar10_python(tmp_path / "raw"), file, broken, message)


def refuses(folder, file, broken, message):
    before = (folder / file).read_bytes()
    (folder / file).write_bytes(broken(before))
    assert (folder / file).read_bytes() != before
    with pytest.raises(ValueError, match=message) as error:
        Cifar(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_files_that_python_3_wrote_are_read_too(tmp_path, protocol):
    folder = make_cifar10_python(tmp_path / "raw")
    for key in (str, str.encode):
        batch = {key("labels"): fine(5, NUM_TEST), key("data"): pixels(5, NUM_TEST)}
        (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol))
        source = Cifar(folder)
        examples = by_split(source)["test"]
        assert [e.given_label for e in examples] == fine(5, NUM_TEST)
        image_HWC = decode.decode(source.read(examples[-1]))
        assert np.array_equal(image_HWC.transpose(2, 0, 1).ravel(), pixels(5, NUM_TEST)[-1])
