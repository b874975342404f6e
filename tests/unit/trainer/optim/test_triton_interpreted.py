"""The tests of tests/gpu, where there is no GPU: Triton's interpreter runs the kernels on the CPU's memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
CONTRACT = Path(__file__).parents[3] / "gpu" / "test_ivon_cuda.py"


@pytest.mark.slow
def test_triton_kernels_hold_their_contract_in_the_interpreter():
    """In a process of its own: Triton decides as it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", str(CONTRACT)]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=env, cwd=CONTRACT.parents[2], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    passed, skipped = (re.search(rf"(\d+) {word}", run.stdout) for word in ("passed", "skipped"))
    assert passed
    assert int(passed[1]) > 30
    assert skipped
    assert int(skipped[1]) == 2  # that need a GPU
