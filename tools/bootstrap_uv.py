"""Put uv into a folder of the project's own, with nothing but a bare python3.

Usage: python3 tools/bootstrap_uv.py FOLDER   ->  FOLDER/bin/uv

A system pip may refuse to install globally, and some systems ship python3 without venv, so two ways are tried: a
virtual environment, then `pip install --target`. Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENT = "uv>=0.9,<1"
MINIMUM_PYTHON = (3, 11)


def by_venv(folder: Path) -> None:
    """Create a virtual environment in `folder` and install uv there."""
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", REQUIREMENT], check=True)


def by_target(folder: Path) -> None:
    """Install uv's files straight into `folder` with the system's pip."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", folder, REQUIREMENT], check=True
    )


def main() -> int:
    """Try each way until FOLDER/bin/uv runs; on failure say what to do."""
    if sys.version_info < MINIMUM_PYTHON:
        print(f"Hush needs Python >= 3.11; {sys.executable} is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    folder = Path(sys.argv[1]).resolve()
    failures = []
    for way in (by_venv, by_target):
        try:
            way(folder)
            subprocess.run([folder / "bin" / "uv", "--version"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            failures.append(f"  {way.__name__}: {error}")
        else:
            return 0
    print("Could not install uv into", folder, file=sys.stderr)
    print("\n".join(failures), file=sys.stderr)
    print("Install it yourself (https://docs.astral.sh/uv) and put it on PATH, then run make again.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
