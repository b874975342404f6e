"""From the POST of a job to its first optimizer step, beside a bare `ray job submit` of an equal TorchTrainer script.

    make bench-start
    python -m benchmarks.start --rounds 5 --workers 2

Contestants, which take turns in each round:

- `ray job`: benchmarks/start_peer.py, a TorchTrainer as Ray's documentation teaches it, submitted to Ray's Jobs API.
- `cold`: the same training as a job of `hush serve --no-warm`. Both run on that service's Ray.
- `warm`: the same job of another `hush serve`, which keeps a spare; it is submitted once the spare waits.

Equal are the data (scikit-learn's digits), the network's layers, batch, optimizer and number of ranks. Hush's job does
more on its way: it is checked, stored and queued, reads its pictures from shards, and copies its metrics to MLflow.

The clock begins just before the POST and stops when rank 0 has made its first step, which both write down themselves;
so neither polling nor what follows counts. Both services are up all the time, and nobody starts before the other's job
has ended and the spare waits again. Medians over rounds. `ratio_to_ray_job` and `warm_ratio_to_ray_job` are ratios of
these medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.sources.digits import Digits
from service.cluster.spares import Spares
from service.embedded.home import ServerAddresses, find_server

NUM_CPUS = 2
PATIENCE_S = 300.0
PEER = Path(__file__).with_name("start_peer.py")
TIMELINE = "timeline.jsonl"


@dataclass(frozen=True)
class Serving:
    """A `hush serve`."""

    home: Path
    addresses: ServerAddresses
    api: httpx.Client
    ray: httpx.Client


@dataclass
class Times:
    """Seconds after the POST at which each moment was reached, a list a moment over the rounds."""

    by_moment: dict[str, list[float]] = field(default_factory=dict)

    def add(self, timeline: Path, posted_at_s: float) -> None:
        """What one start wrote down."""
        for line in timeline.read_text().splitlines():
            mark = json.loads(line)
            self.by_moment.setdefault(mark["moment"], []).append(mark["time_s"] - posted_at_s)

    def medians(self) -> dict[str, float]:
        """By moment, in order of time."""
        medians = {moment: statistics.median(times) for moment, times in self.by_moment.items()}
        return dict(sorted(medians.items(), key=lambda item: item[1]))


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    arguments = _parser().parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-start-", dir="/tmp")))
        build(Digits(), folder / "digits", BuildOptions())
        cold = stack.enter_context(serving(folder / "cold", "--no-warm"))
        warm = stack.enter_context(serving(folder / "warm", "--warm"))
        job = job_spec(folder / "digits" / "manifest.json", arguments.workers)
        run_job(warm, job)  # so that the next spare has as many ranks
        contestants: dict[str, Callable[[], tuple[Path, float]]] = {
            "ray job": lambda: run_peer(cold, folder / "peer", arguments.workers),
            "cold": lambda: run_job(cold, job),
            "warm": lambda: run_job(warm, job),
        }
        times = {name: Times() for name in contestants}
        for number in range(arguments.rounds):
            for name, run in contestants.items():
                wait_for_spare(warm, arguments.workers)
                timeline, posted_at_s = run()
                times[name].add(timeline, posted_at_s)
                seconds = times[name].by_moment["first_step"][-1]
                print(f"round {number + 1}: {name:<8} {seconds:6.2f} s", flush=True)
    tell({name: measured.medians() for name, measured in times.items()}, arguments)


def job_spec(manifest: Path, num_workers: int) -> dict[str, object]:
    """What the peer does, as a job."""
    return {
        "name": "start",
        "data": {"manifest": str(manifest), "batch_size": 32, "image_size": 8, "augmentation": "none"},
        "model": {"arch": "small_cnn"},
        "method": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
        "schedule": {"epochs": 2},
        "label_noise": {"num_examples": 64},
        "resources": {"num_workers": num_workers},
    }


def run_peer(serving: Serving, folder: Path, num_workers: int) -> tuple[Path, float]:
    """Submit the peer and see it through; its timeline, and when it was posted."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    entrypoint = f"{sys.executable} {PEER} {folder} {num_workers}"
    posted_at_s = time.time()
    answer = serving.ray.post("/api/jobs/", json={"entrypoint": entrypoint}).raise_for_status().json()

    def status() -> str:
        return str(serving.ray.get(f"/api/jobs/{answer['submission_id']}").raise_for_status().json()["status"])

    wait_until(lambda: status() not in {"PENDING", "RUNNING"}, "the peer has ended")
    assert status() == "SUCCEEDED", "the peer has failed"
    return folder / TIMELINE, posted_at_s


def run_job(serving: Serving, spec: Mapping[str, object]) -> tuple[Path, float]:
    """Submit a job and see it through; its timeline, and when it was posted."""
    posted_at_s = time.time()
    job_id = serving.api.post("/api/v1/jobs", json=spec).raise_for_status().json()["id"]

    def state() -> str:
        return str(serving.api.get(f"/api/v1/jobs/{job_id}").raise_for_status().json()["state"])

    wait_until(lambda: state() in {"SUCCEEDED", "FAILED"}, "the job has ended")
    assert state() == "SUCCEEDED", serving.api.get(f"/api/v1/jobs/{job_id}").text
    return serving.home / "storage" / "jobs" / job_id / "attempt-1" / TIMELINE, posted_at_s


def wait_for_spare(serving: Serving, num_workers: int) -> None:
    """Until a spare of so many ranks waits for an attempt."""
    spares = Spares(serving.home / "storage" / "spares")

    def waits() -> bool:
        fitting = [spare for spare in spares.waiting() if spare.num_workers == num_workers]
        timelines = [spare.folder / TIMELINE for spare in fitting]
        return any('"waiting"' in timeline.read_text() for timeline in timelines if timeline.exists())

    wait_until(waits, "a spare waits")
    time.sleep(1)  # what its start has stirred up comes to rest


@contextmanager
def serving(home: Path, *options: str) -> Iterator[Serving]:
    """A `hush serve` of its own, ready."""
    argv = [sys.executable, "-m", "service.cli", "serve", "--home", str(home), "--num-cpus", str(NUM_CPUS), *options]
    environment = os.environ | {"HUSH_ALLOWED_ROOTS": str(home.parent)}
    with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as process, ExitStack() as stack:
        stack.callback(process.terminate)
        wait_until(lambda: find_server(home) is not None, "the API answers")
        addresses = find_server(home)
        assert addresses is not None
        api = stack.enter_context(_client(addresses.url, getattr(addresses, "token", None)))
        wait_until(lambda: api.get("/readyz").is_success, "Ray and MLflow are ready")
        ray = stack.enter_context(_client(addresses.ray_url, (home / "ray-token").read_text()))
        yield Serving(home, addresses, api, ray)


def _client(url: str, token: str | None) -> httpx.Client:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Look every fifth of a second; a RuntimeError that says `what` did not come about."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"after {PATIENCE_S:.0f} s it is not so that {what}")
        time.sleep(0.2)


def tell(medians: Mapping[str, Mapping[str, float]], arguments: argparse.Namespace) -> None:
    """The way to the first step, each contestant's; then the figures as JSON."""
    print(f"\nseconds after the POST, medians of {arguments.rounds} rounds, {arguments.workers} ranks, {NUM_CPUS} CPUs")
    for name, moments in medians.items():
        print(f"  {name:<8} " + " -> ".join(f"{moment} {seconds:.2f}" for moment, seconds in moments.items()))
    first = {name: moments["first_step"] for name, moments in medians.items()}
    print(
        json.dumps(
            {
                "bench": "start",
                "ratio_to_ray_job": round(first["cold"] / first["ray job"], 3),
                "warm_ratio_to_ray_job": round(first["warm"] / first["ray job"], 3),
                "ray_job_s": round(first["ray job"], 2),
                "cold_s": round(first["cold"], 2),
                "warm_s": round(first["warm"], 2),
                "num_workers": arguments.workers,
                "rounds": arguments.rounds,
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
            }
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="ranks of each job")
    return parser


if __name__ == "__main__":
    main()
