"""schemathesis against a service that listens: all checks, all phases, by its own command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CONFIG = Path(__file__).with_name("schemathesis.toml")
PHASES = ("coverage", "fuzzing", "stateful")
"""`examples` has none to run: the document gives no examples."""
TIMEOUT_S = 3000


@dataclass(frozen=True)
class SchemaRun:
    """What a run found."""

    num_cases: int
    num_operations: int
    num_failures: int
    told: str
    """What schemathesis printed: each failure with the request that shows it."""


@dataclass(frozen=True)
class Known:
    """What is there on the service, so that requests meet something."""

    job: str
    study: str
    example: str
    manifest: Path


def run_schemathesis(url: str, known: Known, folder: Path, *, num_examples: int, token: str | None) -> SchemaRun:
    """Hold all operations against the OpenAPI document; `num_examples` for each in each phase that draws them."""
    report = folder / "schemathesis.json"
    argv = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{url}/openapi.json"),
        *("--checks", "all", "--phases", f"examples,{','.join(PHASES)}", "--mode", "all"),
        *("--max-examples", str(num_examples), "--continue-on-failure", "--no-color", "--request-timeout", "30"),
        *("--report", "json", "--report-json-path", str(report)),
        *(("-H", f"Authorization: Bearer {token}") if token else ()),
    ]
    env = os.environ | {
        "API_JOB": known.job,
        "API_STUDY": known.study,
        "API_EXAMPLE": known.example,
        "API_MANIFEST": str(known.manifest),
        "NO_PROXY": "*",
    }
    done = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    told = done.stdout + done.stderr
    assert report.exists(), told
    found = json.loads(report.read_text())
    assert found["complete"], told
    assert not found["errors"], told
    phases = {name: phase["status"] for name, phase in found["phases"].items() if name in PHASES}
    assert set(phases) == set(PHASES), phases
    assert "skip" not in phases.values(), f"a phase did not run: {phases}\n{told}"
    cases, operations = found["test_cases"], found["operations"]
    assert operations["tested"] == operations["total"], told
    return SchemaRun(cases["generated"], operations["tested"], cases["unique_failures"], told)
