"""Files of a run: whole or not there, and a journal that can be wound back."""

from pathlib import Path

import pytest

from data_pipeline.storage.atomic_file import write_aside, write_atomically
from trainer.run_folder import RunFolder


def test_writing_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(aside: Path) -> None:
        aside.write_bytes(b"ne")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_aside(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_journal_is_wound_back_to_where_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(None, 0)
    folder.log(step=1, epoch=1, metrics={"train/loss": 2.0})
    folder.publish("a/1.json", b"{}", step=1, epoch=1)
    kept = folder.journal_bytes()
    folder.publish("a/2.json", b"{}", step=2, epoch=2)
    folder.begin(folder.path, kept)
    assert [(entry.step, entry.file) for entry in folder.entries()] == [(1, None), (1, "a/1.json")]


def test_next_attempt_links_what_stands_in_the_kept_journal(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "1"), RunFolder(tmp_path / "2")
    first.begin(None, 0)
    first.publish("a/1.json", b"one", step=1, epoch=1)
    kept = first.journal_bytes()
    first.publish("a/2.json", b"two", step=2, epoch=2)
    second.begin(first.path, kept)
    assert (second.path / "a/1.json").read_bytes() == b"one"
    assert not (second.path / "a/2.json").exists()
    second.publish("a/1.json", b"new", step=1, epoch=1)
    assert (first.path / "a/1.json").read_bytes() == b"one"
    assert len(first.entries()) == 2


def test_half_a_line_is_not_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log(step=1, epoch=1, metrics={"train/loss": 2.0})
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"time_ms":1,')
    assert len(folder.entries()) == 1


def test_checksums_name_every_published_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.publish("a/1.json", b"one", step=1, epoch=1)
    assert list(folder.checksums()) == ["a/1.json", "journal.jsonl"]
