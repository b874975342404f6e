"""One training step of each method on a ResNet, and what recording the label noise adds to an epoch.

    make bench-step                             CPU: resnet18, 64 px, batch 32; GPU: resnet50, 224 px, batch 256, bf16
    python -m benchmarks.step --help            (needs torch and torchvision, and neither Ray nor MLflow)

The product's own optimizers and step functions, on random pictures that lie on the device: loading is not in it. Each
round times every method once, in turn, so that what else the machine does falls on all of them alike; a turn is several
steps, because LookSAM's differ (one in five is dear). Medians over rounds.

The record's share of an epoch, with r of the examples tracked and S weight samples: r × (seconds to estimate ε of an
image) / (seconds to train on one with IVON, one sample a step).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from trainer import ddp
from trainer.label_noise.estimators import EstimateOptions, estimate, posterior_of
from trainer.method_spec import MethodSpec
from trainer.model import build_model
from trainer.optim import build_optimizer
from trainer.spec import LabelNoiseSpec, ModelSpec
from trainer.steps import Learner, step_for
from trainer.target_spec import HardTarget
from trainer.targets import build_target

NUM_CLASSES = 1000
NUM_EXAMPLES = 1_000_000
STEPS_PER_TURN = 5
"""LookSAM's k: each turn holds one of its dear steps."""
WARM_UP_TURNS = 2
PEER = "adamw"
METHODS: dict[str, dict[str, object]] = {
    PEER: {"kind": "adamw"},
    "sgd": {"kind": "sgd"},
    "ivon": {"kind": "ivon"},
    "ivon_antithetic": {"kind": "ivon", "num_mc_samples": 2, "antithetic": True},
    "sam": {"kind": "sam"},
    "looksam": {"kind": "looksam"},
    "msam": {"kind": "msam"},
    "bsam": {"kind": "bsam"},
}


@dataclass(frozen=True)
class Setting:
    """What is trained, and where."""

    device: torch.device
    arch: str
    image_size: int
    batch_size: int
    precision: str

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """A forward pass's context."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def images(self, count: int) -> Tensor:
        """Random pictures, channels_last."""
        shape = (count, 3, self.image_size, self.image_size)
        return torch.randn(shape, device=self.device).contiguous(memory_format=torch.channels_last)

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall time of some work, until the device has done it."""
        self._synchronize()
        start = time.perf_counter()
        work()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Contestant:
    """A network of its own, trained by one method on one batch, over and over."""

    def __init__(self, name: str, setting: Setting) -> None:
        method = TypeAdapter[MethodSpec](MethodSpec).validate_python(METHODS[name])
        network = build_model(ModelSpec.model_validate({"arch": setting.arch}), NUM_CLASSES, seed=0)
        self.network = network.to(memory_format=torch.channels_last).to(setting.device)
        with ddp.without_compiler():
            self.optimizer = build_optimizer(method, self.network, num_examples=NUM_EXAMPLES, seed=0)
        target = build_target(HardTarget(), NUM_CLASSES)
        self._learner = Learner(self.network, self.optimizer, target, setting.autocast)
        self._take_step = step_for(method)
        self._images_BCHW = setting.images(setting.batch_size)
        self._labels_B = torch.arange(setting.batch_size, device=setting.device) % NUM_CLASSES
        self._weights_B = torch.full((setting.batch_size,), 1 / setting.batch_size, device=setting.device)
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-4  # hundreds of steps on one batch: no weight should leave what is usual

    def turn(self) -> None:
        """Some steps."""
        for _ in range(STEPS_PER_TURN):
            self._take_step(self._learner, self._images_BCHW, self._labels_B, self._weights_B)


def time_record(contestant: Contestant, setting: Setting, num_images: int, num_mc_samples: int) -> Callable[[], object]:
    """The work of estimating ε of some images, as the trainer does after an epoch."""
    images_BCHW = setting.images(num_images)
    options = EstimateOptions(seed=0, epoch=1, num_mc_samples=num_mc_samples)
    network: nn.Module = contestant.network
    return lambda: estimate(network, posterior_of(contestant.optimizer), images_BCHW, options)


def measure(setting: Setting, names: list[str], num_rounds: int, record: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds by round: a step of each method, and of `record` an image's ε."""
    contestants = {name: Contestant(name, setting) for name in names}
    works: dict[str, tuple[Callable[[], object], int]] = {
        name: (contestant.turn, STEPS_PER_TURN) for name, contestant in contestants.items()
    }
    recording = time_record(contestants["ivon"], setting, record.record_images, record.num_mc_samples)
    works["record"] = (recording, record.record_images)
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(WARM_UP_TURNS + num_rounds):
        for name, (work, count) in works.items():
            seconds = setting.seconds(work) / count
            if number >= WARM_UP_TURNS:
                times[name].append(seconds)
    return times


def main() -> None:
    """Measure, print a table, and one line of JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    setting = Setting(
        torch.device(options.device), options.arch, options.image_size, options.batch_size, options.precision
    )
    print(
        f"{_device_name(setting.device)} · torch {torch.__version__} · {options.threads} threads · {setting.arch},"
        f" {setting.image_size} px, batch {setting.batch_size}, {setting.precision}"
        f" · median of {options.rounds} rounds of {STEPS_PER_TURN} steps"
    )
    times = measure(setting, options.methods, options.rounds, options)
    step_s = {name: statistics.median(values) for name, values in times.items()}
    image_s = step_s.pop("record")
    print(f"{'method':<16} {'ms a step':>10} {'images/s':>9} {'x ' + PEER:>8}   quartiles of the ratio, round by round")
    ratios: dict[str, float] = {}
    for name, seconds in step_s.items():
        by_round = [own / peer for own, peer in zip(times[name], times[PEER], strict=True)]
        ratios[name] = statistics.median(by_round)
        low, _, high = statistics.quantiles(by_round, n=4)
        speed = setting.batch_size / seconds
        print(f"{name:<16} {1e3 * seconds:>10.2f} {speed:>9.0f} {ratios[name]:>8.3f}   {low:.3f} to {high:.3f}")
    share = options.tracked * image_s * setting.batch_size / step_s["ivon"]
    print(
        f"label-noise record: {1e3 * image_s:.3f} ms an image with {options.num_mc_samples} weight samples in fp32"
        f" ({options.record_images} images a draw); {options.tracked:.0%} tracked: {share:.1%} of an epoch's training"
    )
    figures = {f"{name}_ratio_to_{PEER}": round(ratio, 4) for name, ratio in ratios.items() if name != PEER}
    summary = {
        "bench": "step",
        "device": _device_name(setting.device),
        **figures,
        "record_share_of_epoch": round(share, 4),
    }
    print(json.dumps(summary))


def _options() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--arch", default="resnet50" if on_gpu else "resnet18")
    parser.add_argument("--image-size", type=int, default=224 if on_gpu else 64)
    parser.add_argument("--batch-size", type=int, default=256 if on_gpu else 32)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if on_gpu else "fp32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument("--rounds", type=int, default=20 if on_gpu else 7)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--tracked", type=float, default=0.02, help="share of the examples whose ε is recorded")
    parser.add_argument(
        "--num-mc-samples", type=int, default=LabelNoiseSpec().num_mc_samples, help="weight samples of an ε"
    )
    parser.add_argument("--record-images", type=int, default=445 if on_gpu else 128, help="images that share a draw")
    options = parser.parse_args()
    options.methods = list(dict.fromkeys([PEER, "ivon", *options.methods]))
    return options


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"CPU ({platform.machine()})"


if __name__ == "__main__":
    main()
