"""Descriptors shared by threads: never more than allowed, never closed under a reader."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_pipeline.reading.open_files import OpenFiles


class Folder:
    """Files `0`, `1`, … whose content is their name."""

    def __init__(self, path: Path, num_files: int) -> None:
        self.path, self.opened = path, list[int]()
        for number in range(num_files):
            (path / str(number)).write_text(str(number))

    def open(self, number: int) -> int | None:
        self.opened.append(number)
        file = self.path / str(number)
        return os.open(file, os.O_RDONLY) if file.exists() else None

    def num_open(self) -> int:
        return sum(os.path.realpath(link).startswith(f"{self.path}/") for link in Path("/proc/self/fd").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, 10)


def read(files: OpenFiles, number: int) -> str | None:
    with files.borrow(number) as descriptor:
        return None if descriptor is None else os.pread(descriptor, 10, 0).decode()


def test_those_borrowed_last_stay_open(folder: Folder) -> None:
    files = OpenFiles(folder.open, max_open=3)
    for number in (0, 1, 2, 0, 3, 0, 2, 1):
        assert read(files, number) == str(number)
    assert folder.opened == [0, 1, 2, 3, 1]
    assert folder.num_open() == 3
    files.close()
    assert folder.num_open() == 0


def test_a_file_in_use_outlives_its_place(folder: Folder) -> None:
    files = OpenFiles(folder.open, max_open=1)
    with files.borrow(0) as first, files.borrow(1) as second, files.borrow(0) as again:
        assert first is not None
        assert second is not None
        assert folder.opened == [0, 1, 0]
        assert again != first
        assert [os.pread(descriptor, 1, 0) for descriptor in (first, second)] == [b"0", b"1"]
        files.close()
        assert os.pread(first, 1, 0) == b"0"
        assert folder.num_open() == 3
    assert folder.num_open() == 0
    assert read(files, 5) == "5"
    assert folder.num_open() == 0


def test_what_is_not_there_is_asked_for_again(folder: Folder) -> None:
    files = OpenFiles(folder.open, max_open=3)
    assert read(files, 11) is None
    (folder.path / "11").write_text("11")
    assert read(files, 11) == "11"
    files.close()


def test_forget_and_keep_only(folder: Folder) -> None:
    files = OpenFiles(folder.open, max_open=5)
    for number in range(5):
        read(files, number)
    files.forget(2)
    files.forget(9)
    files.keep_only([0, 3, 7])
    assert folder.num_open() == 2
    folder.opened.clear()
    assert [read(files, number) for number in (0, 2, 3)] == ["0", "2", "3"]
    assert folder.opened == [2]
    files.close()


def test_threads_read_the_file_they_asked_for(folder: Folder) -> None:
    files = OpenFiles(folder.open, max_open=2)
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        draws = random.Random(seed)
        start.wait()
        for _ in range(500):
            number = draws.randrange(10)
            assert read(files, number) == str(number)
            if draws.random() < 0.05:
                files.forget(draws.randrange(10))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert folder.num_open() <= 2
    files.close()
    assert folder.num_open() == 0
