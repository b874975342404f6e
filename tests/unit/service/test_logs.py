"""Parts of logs: whole characters, last lines, ranges of bytes, and how a reader goes on."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cluster.attempts import AttemptFolders
from service.results import logs
from service.results.logs import LogFile, Logs, Place, blocks, byte_range, start_of_last_lines, whole_characters

JOB = "0" * 26


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode), st.integers(0, 40))
def test_a_text_cut_anywhere_is_the_same_text(content: bytes, cut: int) -> None:
    first, num_bytes = whole_characters(content[:cut], is_last=False)
    assert 0 <= len(content[:cut]) - num_bytes <= 3
    rest, num_rest = whole_characters(content[num_bytes:], is_last=True)
    assert num_bytes + num_rest == len(content)
    assert first + rest == content.decode("utf-8", "replace")


@given(
    st.lists(st.sampled_from([b"a", b"\n", b"bc\n", b"\xc3\xa9", b"\n\n"]), max_size=40).map(b"".join),
    st.integers(1, 9),
)
def test_last_lines(content: bytes, num_lines: int) -> None:
    block_bytes, logs.BLOCK_BYTES = logs.BLOCK_BYTES, 5
    try:
        start = start_of_last_lines(io.BytesIO(content), num_lines)
    finally:
        logs.BLOCK_BYTES = block_bytes
    assert content[start:] == b"".join(content.splitlines(keepends=True)[-num_lines:])


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None),
        ("bytes=0-3", range(4)),
        ("bytes=4-", range(4, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-99", range(10)),
        ("bytes=8-99", range(8, 10)),
        ("bytes=9-9", range(9, 10)),
        ("bytes=10-", range(10, 10)),
        ("bytes=-0", range(10, 10)),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("bytes=٣-", None),
        ("bytes=" + "9" * 50 + "-", None),
        ("lines=1-2", None),
        ("", None),
    ],
)
def test_ranges(header: str | None, found: range | None) -> None:
    asked = byte_range(header, 10)
    assert asked == found
    assert asked is None or asked.stop <= 10


def test_a_range_beyond_the_end_is_empty() -> None:
    assert not byte_range("bytes=99999999999-", 10)


@pytest.mark.parametrize("text", ["", "1", "1-", "-1", "x-1", "1-1-1", "٣-1", "1-" + "9" * 40])
def test_no_place(text: str) -> None:
    assert Place.parse(text) is None


def test_a_place_is_read_as_it_was_written() -> None:
    assert Place.parse(str(Place(3, 12_345))) == Place(3, 12_345)


@pytest.fixture
def reader(tmp_path: Path) -> Logs:
    return Logs(AttemptFolders(tmp_path, "http://127.0.0.1:9", None))


def log_file(tmp_path: Path, attempt: int, name: str) -> Path:
    path = tmp_path / "jobs" / JOB / f"attempt-{attempt}" / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_only_logs_are_listed(tmp_path: Path, reader: Logs) -> None:
    assert reader.files(JOB) == []
    for attempt, name in ((10, "rank_0000"), (2, "rank_0001"), (2, "driver"), (2, "rank_0000")):
        log_file(tmp_path, attempt, name).write_bytes(b"x" * attempt)
    for name in ("rank_1", "other", "rank_0000.log.old", "rank_٠٠٠٠"):
        log_file(tmp_path, 2, name).write_bytes(b"no")
    assert reader.files(JOB) == [
        LogFile(2, "driver", 2),
        LogFile(2, "rank_0000", 2),
        LogFile(2, "rank_0001", 2),
        LogFile(10, "rank_0000", 10),
    ]
    assert reader.path(JOB, 2, "rank_0002") is None


def test_reading_on(tmp_path: Path, reader: Logs) -> None:
    place = Place(1, 0)
    assert reader.read_on(JOB, "rank_0000", place, is_over=False) is None
    log = log_file(tmp_path, 1, "rank_0000")
    log.write_bytes("größer".encode()[:3])  # half of an ö
    piece = reader.read_on(JOB, "rank_0000", place, is_over=False)
    assert piece is not None
    assert (piece.text, piece.end) == ("gr", Place(1, 2))
    assert reader.read_on(JOB, "rank_0000", piece.end, is_over=False) is None
    log.write_bytes("größer".encode())
    piece = reader.read_on(JOB, "rank_0000", piece.end, is_over=False)
    assert piece is not None
    assert (piece.text, piece.end) == ("ößer", Place(1, 8))
    log.write_bytes(b"torn \xc3")
    torn = reader.read_on(JOB, "rank_0000", place, is_over=True)
    assert torn is not None
    assert (torn.text, torn.end) == ("torn \ufffd", Place(1, 6))


def test_a_reader_beyond_the_end_goes_on_there(tmp_path: Path, reader: Logs) -> None:
    log = log_file(tmp_path, 1, "driver")
    log.write_bytes(b"x" * 100)
    assert reader.read_on(JOB, "driver", Place(1, 500), is_over=False) is None
    with log.open("ab") as more:
        more.write(b"y" * 401)
    piece = reader.read_on(JOB, "driver", Place(1, 500), is_over=False)
    assert piece is not None
    assert (piece.text, piece.start.offset) == ("y", 500)


def test_blocks_of_a_file_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"0123456789" * 20_000)
    reading = blocks(path, range(5, 150_005))
    first = next(reading)
    with path.open("ab") as more:
        more.write(b"more")
    assert first + b"".join(reading) == (b"0123456789" * 20_000)[5:150_005]
