"""From a cancel to a job that is CANCELLED, on `hush serve` with a real Ray: the promise is five seconds.

    make bench-cancel
    python -m benchmarks.cancel --rounds 5

Five situations, which take turns in each round; each job is a new one that would train for hours:

- `training`: a graceful cancel amid an epoch, so that a last checkpoint is written.
- `recording`: a graceful cancel while label noise is measured, which would take minutes.
- `now`: as `training`, `{"mode": "now"}`.
- `starting`: a graceful cancel as soon as the job was handed to Ray, when nobody hears of it yet.
- `recovering`: a graceful cancel just after its driver was killed.

The clock begins just before the POST of the cancel, and stops when the API says CANCELLED.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.start import Serving, job_spec, serving, wait_until
from data_pipeline.building.build import BuildOptions, build
from data_pipeline.sources.digits import Digits
from service.schemas import JobView

PROMISE_S = 5.0
POLL_S = 0.05


def main() -> None:
    """Measure, and print a line for each cancel and a line of JSON."""
    arguments = _parser().parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-cancel-", dir="/tmp")))
        build(Digits(), folder / "digits", BuildOptions())
        served = stack.enter_context(serving(folder / "home", "--no-warm"))
        job = job_spec(folder / "digits" / "manifest.json", arguments.workers) | {"schedule": {"epochs": 10_000}}
        slow = job | {
            "method": {"kind": "ivon", "lr": 0.1},
            "label_noise": {"num_examples": "all", "num_mc_samples": 1024},
        }
        situations: dict[str, Callable[[], float]] = {
            "training": lambda: cancel(served, submit(served, job, "RUNNING"), "graceful"),
            "recording": lambda: cancel(served, submit(served, slow, "RUNNING", "recording"), "graceful"),
            "now": lambda: cancel(served, submit(served, job, "RUNNING"), "now"),
            "starting": lambda: cancel(served, submit(served, job, "STARTING"), "graceful"),
            "recovering": lambda: cancel(served, kill_driver(served, submit(served, job, "RUNNING")), "graceful"),
        }
        times: dict[str, list[float]] = {name: [] for name in situations}
        for number in range(arguments.rounds):
            for name, run in situations.items():
                times[name].append(run())
                print(f"round {number + 1}: {name:<10} {times[name][-1]:5.2f} s", flush=True)
    tell(times, arguments)


def submit(served: Serving, spec: Mapping[str, object], state: str, phase: str | None = None) -> str:
    """Submit a job and wait until it is in a state and phase, or RUNNING and past its first epoch; its id."""
    job_id = str(served.api.post("/api/v1/jobs", json=spec).raise_for_status().json()["id"])

    def is_there() -> bool:
        job = look(served, job_id)
        if job.state != state or state != "RUNNING":
            return job.state == state
        return job.progress is not None and (job.progress.phase == phase if phase else job.progress.epoch >= 2)

    wait_until(is_there, f"job {job_id} is {phase or state}")
    return job_id


def kill_driver(served: Serving, job_id: str) -> str:
    """End a job's driver by SIGKILL, and wait until that is noticed; the job's id."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "trainer.ray_entry" in words and any(job_id in word for word in words):
            process.kill()
    wait_until(lambda: look(served, job_id).state != "RUNNING", f"job {job_id} recovers")
    return job_id


def cancel(served: Serving, job_id: str, mode: str) -> float:
    """Seconds from the cancel until the job is CANCELLED."""
    began = time.monotonic()
    served.api.post(f"/api/v1/jobs/{job_id}/cancel", json={"mode": mode}).raise_for_status()
    while (state := look(served, job_id).state) != "CANCELLED":
        if time.monotonic() - began > 120:
            raise RuntimeError(f"job {job_id} is {state} two minutes after its cancel")
        time.sleep(POLL_S)
    return time.monotonic() - began


def look(served: Serving, job_id: str) -> JobView:
    """A job as the API shows it."""
    return JobView.model_validate_json(served.api.get(f"/api/v1/jobs/{job_id}").raise_for_status().content)


def tell(times: Mapping[str, list[float]], arguments: argparse.Namespace) -> None:
    """Medians and the slowest of each situation; then the figures as JSON."""
    print(f"\nseconds to CANCELLED over {arguments.rounds} rounds, {arguments.workers} ranks")
    for name, seconds in times.items():
        print(f"  {name:<10} median {statistics.median(seconds):.2f}, slowest {max(seconds):.2f}")
    slowest = {f"{name}_max_s": round(max(seconds), 2) for name, seconds in times.items()}
    medians = {f"{name}_s": round(statistics.median(seconds), 2) for name, seconds in times.items()}
    late = sum(second > PROMISE_S for seconds in times.values() for second in seconds)
    about = {"rounds": arguments.rounds, "num_workers": arguments.workers, "machine": platform.machine()}
    print(
        json.dumps(
            {"bench": "cancel", "num_later_than_5_s": late, **medians, **slowest, **about, "cpus": os.cpu_count()}
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cancel", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="ranks of each job")
    return parser


if __name__ == "__main__":
    main()
