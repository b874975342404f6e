"""Which method learns best from wrong labels: Fashion-MNIST, 40% symmetric noise, equal epochs, small_cnn.

    make bench-convergence                      (about an hour on two cores; goes on where it was stopped)
    python -m benchmarks.convergence --data DIR --out DIR --parallel 2

A small training set (3,000 pictures) and many epochs (30), because that is where wrong labels hurt: there is time to
learn them by heart. The same for all methods: network, pictures, noise, order, batch, weight decay, epochs, a warm-up
epoch and then cosine, and five settings each. For each method the setting with the best accuracy on 1,000 *clean*
validation pictures, after the last epoch and with seed 0, is chosen; it is run again with other seeds, and reported on
10,000 clean test pictures. Nothing is chosen on test. SGD's choice of learning rate is handed on to label smoothing,
online label smoothing and SAM, whose settings are those of their own parameter. The grids of IVON and SAM stand where a
few runs beforehand had shown that they learn.

Every run is `python -m trainer` in a process of its own with one thread. Finished runs are kept in OUT/results.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipeline.building.build import BuildOptions, build
from data_pipeline.sources.base import Source, SourceExample
from data_pipeline.sources.mnist import FASHION_CLASSES, Mnist
from data_pipeline.spec import SymmetricCorruption

NUM_VAL = 1000
NOISE_RATE = 0.4
BATCH_SIZE = 50
WEIGHT_DECAY = 5e-4
METHODS = ("SGD", "LS", "OLS", "SAM", "IVON")
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A method with its parameters: what is chosen between."""

    method: str
    label: str
    spec: dict[str, dict[str, object]]
    """Fields `method` and `target` of the job."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run."""

    method: str
    label: str
    seed: int
    job: dict[str, object]
    metrics: dict[str, float]
    wall_s: float


@dataclasses.dataclass(frozen=True)
class Subset:
    """A source with only the first so many training examples."""

    source: Source
    num_train: int

    @property
    def name(self) -> str:
        """That of the source."""
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the source."""
        return self.source.classes

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the source."""
        return self.source.notes

    def examples(self) -> Iterator[SourceExample]:
        """As many of train, all others."""
        num_seen = 0
        for example in self.source.examples():
            num_seen += example.split == "train"
            if example.split != "train" or num_seen <= self.num_train:
                yield example

    def read(self, example: SourceExample) -> bytes:
        """That of the source."""
        return self.source.read(example)


def first_settings(num_examples: int, num_steps: int) -> list[Setting]:
    """SGD by its learning rate; IVON by learning rate and effective sample size.

    With ess = N, Bayes' own choice, the weights' noise drowns much of what so few pictures teach: wider and narrower
    posteriors are tried like learning rates.
    """
    rates = (0.01, 0.02, 0.05, 0.1, 0.2)
    pairs = ((1.0, num_examples), (0.5, 10_000), (1.0, 10_000), (2.0, 10_000), (0.5, 30_000))
    ivon = {"kind": "ivon", "hess_init": 0.5, "beta2": round(1 - 1 / num_steps, 6), "weight_decay": WEIGHT_DECAY}
    return [Setting("SGD", f"lr {lr}", {"method": _sgd(lr)}) for lr in rates] + [
        Setting("IVON", f"lr {lr} h0 0.5 ess {ess}", {"method": {**ivon, "lr": lr, "ess": ess}}) for lr, ess in pairs
    ]


def later_settings(lr: float) -> list[Setting]:
    """What is done to SGD, at its learning rate, by its own parameter; label smoothing's rates are the paper's.

    SAM's radii are small and have a larger rate among them: in so few steps rho 0.1 already learns too little.
    """
    sgd = _sgd(lr)
    smoothed = [
        Setting("LS", f"rate {rate}", {"method": sgd, "target": {"kind": "smoothed", "rate": rate}})
        for rate in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    online = [
        Setting("OLS", f"hard weight {weight}", {"method": sgd, "target": {"kind": "online", "hard_weight": weight}})
        for weight in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    sam = [
        Setting("SAM", f"rho {rho} lr {factor * lr}", {"method": {**sgd, "kind": "sam", "rho": rho, "lr": factor * lr}})
        for rho, factor in ((0.02, 1), (0.05, 1), (0.1, 1), (0.05, 2), (0.1, 2))
    ]
    return smoothed + online + sam


def _sgd(lr: float) -> dict[str, object]:
    return {"kind": "sgd", "lr": lr, "momentum": 0.9, "weight_decay": WEIGHT_DECAY}


# --------------------------------------------------------------------------------------------------------------- runs


class Runs:
    """Runs settings, several at a time, and remembers what came out."""

    def __init__(self, options: argparse.Namespace, manifest: Path) -> None:
        self._options, self._manifest = options, manifest
        self._file: Path = options.out / "results.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._done = [Result(**json.loads(line)) for line in lines]

    def all(self, settings: list[Setting], seeds: range) -> list[Result]:
        """A result for each setting and seed; only those not there yet are run."""
        with ThreadPoolExecutor(self._options.parallel) as pool:
            return list(pool.map(lambda pair: self._one(*pair), [(s, seed) for seed in seeds for s in settings]))

    def _one(self, setting: Setting, seed: int) -> Result:
        job = self._job(setting, seed)
        for result in self._done:
            if result.job == job:
                return result
        folder: Path = self._options.out / "runs" / str(job["name"])
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed: its time would not be known
        folder.mkdir(parents=True)
        (folder / "job.yaml").write_text(json.dumps(job))
        start = time.monotonic()
        command = [sys.executable, "-m", "trainer", str(folder / "job.yaml"), "--run-dir", str(folder / "run")]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
        metrics = json.loads((folder / "run" / "result.json").read_text())["metrics"]
        result = Result(setting.method, setting.label, seed, job, metrics, round(time.monotonic() - start, 1))
        self._done.append(result)
        with self._file.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(result)) + "\n")
        print(
            f"{setting.method:<5} {setting.label:<24} seed {seed}: val {metrics['val_clean/accuracy']:.4f},"
            f" test {metrics['test_clean/accuracy']:.4f}, train (given labels) {metrics['train/accuracy']:.3f},"
            f" {result.wall_s:.0f} s",
            flush=True,
        )
        return result

    def _job(self, setting: Setting, seed: int) -> dict[str, object]:
        label = "".join(letter if letter.isalnum() or letter == "." else "-" for letter in setting.label)
        return {
            "name": f"{setting.method}-{label}-seed{seed}".lower(),
            "data": {
                "manifest": str(self._manifest),
                "image_size": 28,
                "batch_size": BATCH_SIZE,
                "augmentation": "none",
                "num_threads": 1,
            },
            "model": {"arch": "small_cnn"},
            "schedule": {"epochs": self._options.epochs, "warmup_epochs": 1, "decay": "cosine"},
            "label_noise": {"every_epochs": self._options.epochs, "num_mc_samples": 2, "num_examples": 50},
            "seed": seed,
            **setting.spec,
        }


def best_of(results: list[Result], method: str) -> Result:
    """The method's result with the best accuracy on val; of equal ones the first."""
    return max((r for r in results if r.method == method), key=lambda r: r.metrics["val_clean/accuracy"])


def prepare_data(options: argparse.Namespace) -> Path:
    """Build the training subset with its noise, val and test; path of the manifest."""
    source = Mnist(options.data, "fashion-mnist", FASHION_CLASSES, num_val=NUM_VAL)
    noise = BuildOptions(corruption=SymmetricCorruption(rate=NOISE_RATE))
    folder = Path(options.out) / "data"
    build(Subset(source, options.train_examples), folder, noise)
    return (folder / "manifest.json").resolve()


# -------------------------------------------------------------------------------------------------------------- report


def report(sweep: list[Result], chosen: dict[str, list[Result]]) -> dict[str, object]:
    """Print the tables; the figures of the JSON line. With a posterior there are two predictions of the same runs."""
    print("\n| method | chosen on val | test accuracy | NLL | ECE | train accuracy (given labels) | s a run |")
    print("|---|---|---|---|---|---|---|")
    figures: dict[str, object] = {}
    for method, results in chosen.items():
        figures[method] = _row(method, results, "test_clean")
        if "test_clean_averaged/accuracy" in results[0].metrics:
            figures[f"{method}, averaged"] = _row(f"{method}, averaged", results, "test_clean_averaged")
    print("\n| all settings, seed 0 | val accuracy | test accuracy | NLL | ECE |\n|---|---|---|---|---|")
    for result in sweep:
        val, test = (100 * result.metrics[f"{split}_clean/accuracy"] for split in ("val", "test"))
        nll, ece = result.metrics["test_clean/nll"], result.metrics["test_clean/ece"]
        print(f"| {result.method}, {result.label} | {val:.1f} | {test:.2f} | {nll:.3f} | {ece:.3f} |")
    return figures


def _row(name: str, results: list[Result], prefix: str) -> dict[str, float]:
    """Print one method's line: means over its seeds of the metrics under `prefix`."""

    def mean(metric: str) -> float:
        return statistics.mean(result.metrics[metric] for result in results)

    accuracy = [100 * result.metrics[f"{prefix}/accuracy"] for result in results]
    spread = f" ± {statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
    nll, ece = mean(f"{prefix}/nll"), mean(f"{prefix}/ece")
    wall_s = statistics.mean(result.wall_s for result in results)
    print(
        f"| {name} | {results[0].label} | {statistics.mean(accuracy):.2f}{spread} | {nll:.3f} | {ece:.3f}"
        f" | {100 * mean('train/accuracy'):.1f} | {wall_s:.0f} |"
    )
    return {"test_accuracy": round(statistics.mean(accuracy), 2), "nll": round(nll, 4), "ece": round(ece, 4)}


def main() -> None:
    """Run what is missing, and print the tables and a line of JSON."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    num_steps = options.epochs * (options.train_examples // BATCH_SIZE)
    runs = Runs(options, prepare_data(options))
    settings = first_settings(options.train_examples, num_steps)
    sweep = runs.all(settings, range(1))
    settings += later_settings(float(best_of(sweep, "SGD").label.removeprefix("lr ")))
    sweep = runs.all(settings, range(1))
    best = {method: best_of(sweep, method) for method in METHODS}
    repeated = runs.all([s for s in settings if s.label == best[s.method].label], range(1, options.seeds))
    chosen = {method: [best[method], *(r for r in repeated if r.method == method)] for method in METHODS}
    print(
        f"\nFashion-MNIST, {options.train_examples:,} training pictures with {NOISE_RATE:.0%} symmetric noise,"
        f" small_cnn, {options.epochs} epochs of batch {BATCH_SIZE}, warm-up 1 epoch, cosine; mean ± standard deviation"
        f" over {options.seeds} seeds (of weights, order and the method's noise; the wrong labels stay the same)"
    )
    figures = report(sweep, chosen)
    print(json.dumps({"bench": "convergence", "num_seeds": options.seeds, "epochs": options.epochs, **figures}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/fashion-mnist", help="idx files")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/bench-convergence", help="data, runs, results.jsonl")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--train-examples", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each chosen setting")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
