"""What a process prints, in real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.output_log import driver_log, drop_middle, rank_log

NOISY = """
import logging, os, subprocess, sys, warnings
from pathlib import Path
from trainer.output_log import log_plainly, output_kept_in
print("before")
with output_kept_in(Path(sys.argv[1]), "rank 0 of 2"):
    log_plainly()
    print("printed")
    os.write(1, b"written by native code\\n")
    subprocess.run(["sh", "-c", "echo a child says so >&2"], check=True)
    warnings.warn("be warned")
    logging.getLogger("trainer.loop").info("ours at info")
    logging.getLogger("httpx").info("others at info")
    logging.getLogger("httpx").warning("others at warning")
    exec(sys.argv[2])
print("after")
"""


def run(log: Path, last: str = "pass") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", NOISY, str(log), last], capture_output=True, text=True, check=False)


def test_all_that_a_process_prints_is_kept(tmp_path: Path) -> None:
    log = rank_log(tmp_path, 0)
    assert log == tmp_path / "logs" / "rank_0000.log"
    done = run(log)
    assert (done.returncode, done.stdout, done.stderr) == (0, "before\nafter\n", "")
    text = log.read_text()
    lines = ["printed", "written by native code", "a child says so", "be warned", "INFO trainer.loop: ours at info"]
    places = [text.index(line) for line in [*lines, "WARNING httpx: others at warning"]]
    assert places == sorted(places)
    assert "others at info" not in text
    assert "rank 0 of 2 on " in text.splitlines()[0]


def test_the_next_start_writes_on(tmp_path: Path) -> None:
    log = driver_log(tmp_path)
    run(log)
    run(log)
    assert log.read_text().count("=== ") == 2
    assert log.read_text().count("printed") == 2


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ("print('last words'); os.kill(os.getpid(), 9)", "last words"),
        ("raise RuntimeError('no')", ""),
        ("print('no newline', end=''); os.abort()", "no newline"),
    ],
)
def test_last_words_of_a_process_that_dies(tmp_path: Path, last: str, words: str) -> None:
    log = driver_log(tmp_path)
    done = run(log, last)
    assert done.returncode != 0
    assert "after" not in done.stdout
    assert words in log.read_text()


def test_a_log_that_is_too_long_keeps_its_ends(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    lines = [f"line {n:06d} é\n" for n in range(10_000)]
    log.write_text("".join(lines))
    with log.open("ab") as writer:  # another process, which need not know
        drop_middle(log, 1000)
        writer.write(b"written on\n")
    text = log.read_text(errors="replace")
    assert text.startswith("".join(lines[:50]))
    assert text.endswith("".join(lines[-50:]) + "written on\n")
    [note] = [line for line in text.splitlines() if line.startswith("===")]
    num_kept = log.stat().st_size - len(f"\n{note}\nwritten on\n")
    assert int(note.split()[1]) == len("".join(lines).encode()) - num_kept
    assert num_kept <= 2000


FLOOD = """
import sys, time
from pathlib import Path
from trainer import output_log
output_log.MAX_BYTES, output_log.KEPT_BYTES, output_log.CHECK_INTERVAL_S = 200_000, 50_000, 0.01
with output_log.output_kept_in(Path(sys.argv[1]), "flood"):
    print("the first")
    for number in range(200_000):
        print(f"line {number}")
    while Path(sys.argv[1]).stat().st_size > 200_000:
        time.sleep(0.01)
    print("the last")
"""


def test_a_flood_does_not_fill_the_disk(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    subprocess.run([sys.executable, "-c", FLOOD, str(log)], check=True)
    assert log.stat().st_size < 210_000
    text = log.read_text()
    assert text.splitlines()[1] == "the first"
    assert text.splitlines()[-1] == "the last"
    assert "line 199999\n" in text
    assert "bytes are left out here" in text
