"""The peer of benchmarks/start.py: digits with a TorchTrainer, written as Ray's documentation teaches it.

    ray job submit -- python benchmarks/start_peer.py FOLDER NUM_WORKERS

Rank 0 writes `FOLDER/first_step` after its first optimizer step, and every process what it reached when.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

BEGAN_S = time.time()

import ray.train  # noqa: E402
import ray.train.torch  # noqa: E402
import torch  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

WIDTHS = (32, 64, 128)


def build_network() -> nn.Module:
    """The layers of Hush's small_cnn."""
    layers: list[nn.Module] = []
    num_in = 1
    for width in WIDTHS:
        layers += [nn.Conv2d(num_in, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2))
        num_in = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(num_in, 10))


def mark(folder: str, moment: str, time_s: float) -> None:
    with (Path(folder) / "timeline.jsonl").open("a") as file:
        file.write(json.dumps({"moment": moment, "time_s": time_s}) + "\n")


def train_loop(config: dict[str, str]) -> None:
    is_main = ray.train.get_context().get_world_rank() == 0
    if is_main:
        mark(config["folder"], "loop_entered", time.time())
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    loader = ray.train.torch.prepare_data_loader(DataLoader(data, batch_size=32, shuffle=True))
    model = ray.train.torch.prepare_model(build_network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()
    for epoch in range(2):
        if ray.train.get_context().get_world_size() > 1:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # as Ray's documentation has it
        total = 0.0
        for number, (inputs, targets) in enumerate(loader):
            optimizer.zero_grad()
            loss = loss_of(model(inputs), targets)
            loss.backward()
            optimizer.step()
            if is_main and epoch == 0 and number == 0:
                mark(config["folder"], "first_step", time.time())
            total += loss.item()
        ray.train.report({"loss": total / len(loader)})


def main() -> None:
    folder, num_workers = sys.argv[1], int(sys.argv[2])
    mark(folder, "driver", BEGAN_S)
    mark(folder, "driver_imported", time.time())
    trainer = ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={"folder": folder},
        scaling_config=ray.train.ScalingConfig(num_workers=num_workers),
        run_config=ray.train.RunConfig(storage_path=folder),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
