"""What every Storage keeps to: a folder, and S3 and HTTP on a real server, one that answers and one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_proxy import ALL_FAULTS
from s3_server import QUICK, S3Server, s3_server

from data_pipeline.storage import Storage, storage_for

NAME = "train 1/a,b=c+@-000001.tar"
CONTENT = bytes(range(256)) * 4000  # 1 MB: not all of it in one request

KINDS = ("folder", "s3", "s3, failing", "http", "http, failing")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=KINDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Holds `NAME`."""
    if request.param == "folder":
        (tmp_path / NAME).parent.mkdir()
        (tmp_path / NAME).write_bytes(CONTENT)
        return storage_for(tmp_path)
    server: S3Server = request.getfixturevalue("server")
    prefix = f"{tmp_path.name}/set"
    server.put(f"{prefix}/{NAME}", CONTENT)
    server.proxy.set_faults(ALL_FAULTS if request.param.endswith("failing") else ("none",))
    url = server.s3_url(prefix) if request.param.startswith("s3") else server.http_url(prefix)
    return storage_for(url + "/", QUICK)


def test_reads_whole_files(storage: Storage) -> None:
    assert storage.read(NAME) == CONTENT
    assert (storage.exists(NAME), storage.size_bytes(NAME)) == (True, len(CONTENT))


def test_reads_ranges_in_the_order_asked_for(storage: Storage) -> None:
    size = len(CONTENT)
    ranges = [(900_000, 50), (0, 10), (5, 10), (0, 0), (400_000, 300_000), (size - 1, 1), (5, 10)]
    assert storage.read_ranges(NAME, ranges) == [CONTENT[offset : offset + length] for offset, length in ranges]
    assert storage.read_range(NAME, 1000, 2000) == CONTENT[1000:3000]
    assert storage.read_ranges(NAME, []) == []


@pytest.mark.parametrize("near", [10, 700_000], ids=["in one request", "in two"])
def test_a_range_ends_where_the_file_does(storage: Storage, near: int) -> None:
    size = len(CONTENT)
    ranges = [(size - near, 5), (size - 3, 10), (size, 10), (size + 10_000_000, 10)]
    assert [len(piece) for piece in storage.read_ranges(NAME, ranges)] == [5, 3, 0, 0]
    assert storage.read_range(NAME, size + 1, 10) == b""


def test_a_file_that_is_not_there(storage: Storage) -> None:
    assert not storage.exists("other.tar")
    for read in (storage.read, storage.size_bytes, lambda name: storage.read_range(name, 0, 10)):
        with pytest.raises(FileNotFoundError):
            read("other.tar")


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../b", "", "nul\0byte", "pipe:cat secret", "s3://a/b"]
)
def test_stays_inside_its_root(storage: Storage, path: str) -> None:
    for act in (storage.read, storage.exists, storage.size_bytes, lambda path: storage.read_range(path, 0, 1)):
        with pytest.raises(ValueError, match="data set"):
            act(path)
    with pytest.raises(ValueError, match=r"data set|can only be read"):
        storage.write(path, b"")


def test_what_is_written_is_read_by_others(storage: Storage, tmp_path: Path) -> None:
    if storage.url.startswith("http"):
        with pytest.raises(ValueError, match=r"can only be read; write to a folder or to s3://"):
            storage.write("new", b"")
        return
    (tmp_path / "source").write_bytes(CONTENT * 7)  # in several parts, over S3
    storage.write("deep/er/new.json", b"old")
    storage.write("deep/er/new.json", b"new")
    storage.write_file("new.tar", tmp_path / "source")
    other = storage_for(storage.url, QUICK)
    assert other.url == storage.url
    assert (other.read("deep/er/new.json"), other.read("new.tar")) == (b"new", CONTENT * 7)
    storage.delete("new.tar")
    storage.delete("new.tar")  # is gone already
    assert not other.exists("new.tar")
    assert not list(tmp_path.rglob("*.part"))
