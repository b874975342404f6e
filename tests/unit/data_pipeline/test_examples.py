"""The table of a split: what a broken index says, and what a table must not cost."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.examples import INDEX_SCHEMA, open_split
from data_pipeline.manifest import FileEntry, Manifest


@pytest.fixture
def copied(built_clothing, tmp_path: Path) -> Manifest:
    shutil.copytree(built_clothing[1].root, tmp_path / "copied")
    return Manifest.load(tmp_path / "copied" / "manifest.json")


def with_index(manifest: Manifest, content: bytes) -> Manifest:
    """The manifest, this being the index of the first training shard."""
    train = manifest.splits["train"]
    entry = FileEntry(path="new.index.arrow", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (manifest.root / entry.path).write_bytes(content)
    first = train.shards[0].model_copy(update={"index": entry})
    split = train.model_copy(update={"shards": (first, *train.shards[1:])})
    return manifest.model_copy(update={"splits": {**manifest.splits, "train": split}}).at(manifest.root)


def index_of(manifest: Manifest, **columns: list[object]) -> bytes:
    """The first training shard's index, some columns replaced."""
    path = manifest.root / manifest.splits["train"].shards[0].index.path
    with pa.ipc.open_file(pa.py_buffer(path.read_bytes())) as file:
        table = file.read_all()
    for name, values in columns.items():
        place = INDEX_SCHEMA.get_field_index(name)
        table = table.set_column(place, INDEX_SCHEMA.field(name), pa.array(values, INDEX_SCHEMA.field(name).type))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_the_columns_are_those_of_the_indexes(copied):
    table = open_split(with_index(copied, index_of(copied, offset=[7] * 8, clean_label=[2] * 8)), "train")
    assert table.offsets[:8].tolist() == [7] * 8
    assert table.offsets[8] != 7
    assert table.clean_labels[:8].tolist() == [2] * 8
    assert [table.shard_of(row) for row in (0, 7, 8, 19)] == [f"train-00000{number}.tar" for number in (0, 0, 1, 2)]
    assert (table.given_labels.dtype, table.lengths.dtype, table.offsets.dtype) == (np.int32, np.int32, np.int64)


@pytest.mark.parametrize(
    ("name", "values", "limits"),
    [
        ("given_label", [0, 1, 2, 3, 0, 0, 0, 0], "given_label 3 of example .* must be 0 to 2"),
        ("given_label", [-1] * 8, "given_label -1 .* must be 0 to 2"),
        ("clean_label", [-2] * 8, "clean_label -2 .* must be -1 to 2"),
        ("ordinal", [22] * 8, r"ordinal 22 .* must be 0 to \d+"),
        ("length", [2**31] * 8, "length 2147483648 .* must be 0 to 2147483647"),
        ("offset", [-1] * 8, "offset -1 "),
        ("height", [0] * 8, "height 0 .* must be 1 to"),
        ("width", [-5] * 8, "width -5 .* must be 1 to"),
    ],
)
def test_numbers_out_of_range_are_refused_and_the_example_named(copied, name, values, limits):
    with pytest.raises(ValueError, match=limits):
        open_split(with_index(copied, index_of(copied, **{name: values})), "train")


def test_a_damaged_index_is_refused(copied):
    whole = index_of(copied)
    for content in (b"", whole[:200], whole[: len(whole) // 2] + b"\0" * 50):
        with pytest.raises(ValueError, match=r"index .* is damaged"):
            open_split(with_index(copied, content), "train")
    path = copied.root / copied.splits["train"].shards[1].index.path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"index .* differs from the manifest's sha256"):
        open_split(copied, "train")
    path.unlink()
    with pytest.raises(ValueError, match=r"index .* cannot be read: No such file"):
        open_split(copied, "train")


def test_an_index_of_another_form_or_length_is_refused(copied):
    other = pa.BufferOutputStream()
    with pa.ipc.new_file(other, pa.schema([("example_id", pa.string())])) as writer:
        writer.write_table(pa.table({"example_id": ["a"] * 8}))
    with pytest.raises(ValueError, match="does not fit the manifest"):
        open_split(with_index(copied, other.getvalue().to_pybytes()), "train")
    for name, value in (("example_id", "a"), ("height", 1), ("xxh3", 1)):
        with pytest.raises(ValueError, match="does not fit the manifest"):
            open_split(with_index(copied, index_of(copied, **{name: [None, *[value] * 7]})), "train")
    second = copied.root / copied.splits["train"].shards[2].index.path
    with pytest.raises(ValueError, match="does not fit the manifest"):
        open_split(with_index(copied, second.read_bytes()), "train")


def test_opening_a_split_imports_no_pandas(built_clothing):
    """Arrow imports it at the first use of some functions: two seconds, and 35 MB a rank."""
    code = """
import sys
import numpy as np
from data_pipeline.examples import open_split
from data_pipeline.manifest import Manifest
table = open_split(Manifest.load(sys.argv[1]), "train")
assert len(table.select(np.array([3, 1])).example_ids.tolist()) == 2
assert "pandas" not in sys.modules
"""
    path = built_clothing[1].root / "manifest.json"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=Path(__file__).parents[3])
