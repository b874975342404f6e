"""One IVON step on the weights of a network, beside ivon-opt's, torch's fused AdamW, and IVON in plain torch.

A step is everything the optimizer does for one batch: sampling the weights, restoring the mean, and the update; forward
and backward passes are left out (gradients are fixed). All peers take turns in every round, on the same gradients.

Bytes that IVON must move for each float32 weight: 16 to sample (read mean and Hessian, save the mean, write the
sample), 8 to restore, 4 to look for NaN and infinity, 28 to update (read mean, Hessian, momentum and gradient, write
the first three). Noise is made again for the update, not kept. The bandwidth is that of copying a tensor of the same
size, in the same rounds: 8 bytes a weight.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ivon
import torch
from torch import Tensor
from torchvision.models import get_model

from trainer.optim.ivon import IVON
from trainer.optim.noise import seeded_normal

BYTES_PER_WEIGHT = 16 + 8 + 4 + 28
COPY_BYTES_PER_WEIGHT = 8
STATE_BYTES_PER_WEIGHT = 8
ESS = 1_000_000

Step = Callable[[], object]


def main() -> None:
    """Measure, print a table and one line of JSON."""
    options = parse_arguments()
    device = torch.device(options.device)
    torch.manual_seed(0)
    network = get_model(options.arch).to(device, memory_format=torch.channels_last)
    weights = [parameter.detach() for parameter in network.parameters()]
    grads = [1e-3 * torch.randn_like(weight) for weight in weights]
    if options.memory:
        print(extra_bytes_per_weight(weights, grads))
        return
    extra = measure_extra_bytes_per_weight(options)
    medians = measure(build_peers(weights, grads), options.rounds, device)
    figures = {
        "bench": "optim",
        "device": device_name(device),
        "arch": options.arch,
        "num_weights": sum(weight.numel() for weight in weights),
        "rounds": options.rounds,
        "ivon_ms": round(1e3 * medians["hush"], 3),
        "ratio_to_ivon_opt": round(medians["hush"] / medians["ivon-opt"], 4),
        "ratio_to_adamw": round(medians["hush"] / medians["adamw"], 2),
        "bandwidth_share": round(bandwidth_share(medians["hush"], medians["copy"]), 3),
        "plain_ratio_to_ivon_opt": round(medians["hush, plain torch"] / medians["ivon-opt"], 4),
        "bytes_per_weight": BYTES_PER_WEIGHT,
        "extra_bytes_per_weight": round(extra, 2),
    }
    report(medians, figures)
    print(json.dumps(figures))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50", help="torchvision network whose weights are used (resnet50)")
    parser.add_argument("--rounds", type=int, default=21, help="rounds measured, after two to warm up (21)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--memory", action="store_true", help="only print the peak memory beyond the state, in bytes")
    return parser.parse_args()


def build_peers(weights: Sequence[Tensor], grads: Sequence[Tensor]) -> dict[str, Step]:
    """Name -> one step. Each peer has its own weights."""

    def parameters() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(weight.clone()) for weight in weights]

    def with_gradients(own: list[torch.nn.Parameter]) -> None:
        for parameter, grad in zip(own, grads, strict=True):
            parameter.grad = grad

    def sampling(own: list[torch.nn.Parameter], optimizer: IVON | ivon.IVON) -> Step:
        def step() -> None:
            with optimizer.sampled_params(train=True):
                with_gradients(own)
            optimizer.step()

        return step

    ours, plain, theirs, adam = parameters(), parameters(), parameters(), parameters()
    adamw = torch.optim.AdamW(adam, lr=1e-4, fused=True)
    with_gradients(adam)
    source, target = (torch.zeros(sum(w.numel() for w in weights), device=weights[0].device) for _ in range(2))
    return {
        "hush": sampling(ours, IVON(ours, lr=0.1, ess=ESS)),
        "ivon-opt": sampling(theirs, ivon.IVON(theirs, lr=0.1, ess=ESS)),
        "adamw": adamw.step,
        "hush, plain torch": sampling(plain, IVON(plain, lr=0.1, ess=ESS, noise=seeded_normal)),
        "copy": lambda: target.copy_(source),
    }


def measure(peers: dict[str, Step], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each step, in rounds in which the peers take turns; two rounds of warm-up don't count."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(-2, rounds):
        for name, step in peers.items():
            wait_for(device)
            started = time.perf_counter()
            step()
            wait_for(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_extra_bytes_per_weight(options: argparse.Namespace) -> float:
    """`extra_bytes_per_weight` in a process of its own, whose memory nothing else has used.

    There, glibc gives each larger tensor its own pages, and takes them back with it, so that resident pages count.
    """
    command = [sys.executable, "-m", "benchmarks.optim", "--memory", "--arch", options.arch, "--device", options.device]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def extra_bytes_per_weight(weights: Sequence[Tensor], grads: Sequence[Tensor]) -> float:
    """Peak memory of three steps beyond the optimizer's state (momentum and Hessian), over the number of weights."""
    own = [torch.nn.Parameter(weight.clone()) for weight in weights]
    device = own[0].device

    def take_steps(optimizer: IVON) -> None:
        for _ in range(3):
            with optimizer.sampled_params(train=True):
                for parameter, grad in zip(own, grads, strict=True):
                    parameter.grad = grad
            optimizer.step()
        wait_for(device)

    take_steps(IVON(own, lr=0.1, ess=ESS))  # loads and compiles
    gc.collect()
    before = peak_bytes(device, reset=True)
    optimizer = IVON(own, lr=0.1, ess=ESS)
    take_steps(optimizer)
    num_weights = sum(weight.numel() for weight in weights)
    return (peak_bytes(device) - before) / num_weights - STATE_BYTES_PER_WEIGHT


def bandwidth_share(step_s: float, copy_s: float) -> float:
    """Time that the bytes alone would take, at the bandwidth of a copy, over the time of a step."""
    return (BYTES_PER_WEIGHT / COPY_BYTES_PER_WEIGHT) * copy_s / step_s


def peak_bytes(device: torch.device, *, reset: bool = False) -> int:
    """The most memory in use since the last reset; with `reset`, that is now."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))  # type: ignore[union-attr]  # always there


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{found.group(1) if found else platform.machine()}, {torch.get_num_threads()} threads"


def report(medians: dict[str, float], figures: dict[str, object]) -> None:
    """Print what was measured as a table for people."""
    print(f"{figures['arch']}: {figures['num_weights']:,} weights; {figures['device']}; torch {torch.__version__}")
    print(f"{'':<18} {'ms':>9} {'/ ivon-opt':>11} {'/ adamw':>8}")
    for name, seconds in medians.items():
        ratios = f"{seconds / medians['ivon-opt']:>11.4f} {seconds / medians['adamw']:>8.2f}"
        print(f"{name:<18} {1e3 * seconds:>9.2f} {ratios}")
    print(
        f"hush moves {BYTES_PER_WEIGHT} bytes a weight: {figures['bandwidth_share']:.0%} of the speed of a copy;"
        f" beyond its state it holds {figures['extra_bytes_per_weight']} bytes a weight (one buffer is 4)"
    )


if __name__ == "__main__":
    main()
