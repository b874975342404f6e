"""The benchmark of the API, in small: that it runs, and that no follower misses anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ("--jobs=1200", "--clients=4", "--rounds=1", "--seconds=0.2", "--followers=12", "--follow-seconds=3")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_small() -> None:
    argv = [sys.executable, "-m", "benchmarks.api", *SMALL]
    root = Path(__file__).parents[3]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["page_p99_ratio"] > 0
    assert (found["events_missed"], found["followers_told_wrong"]) == (0, 0)
    for kind in ("sqlite", "postgresql"):
        assert found[kind]["page_many"]["p99_ms"] >= found[kind]["page_many"]["p50_ms"] > 0
        assert found[kind]["followers"]["num_events"] == 12 * (3 + 4)
