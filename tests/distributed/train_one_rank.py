"""One rank of test_ivon_ranks: trains a few steps on its share of a batch and saves what it ended with.

Run as `train_one_rank.py RANK WORLD_SIZE FOLDER METHOD_AS_JSON`; the ranks find each other through a file in FOLDER.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import nn

from trainer.ddp import wrap
from trainer.method_spec import MethodSpec
from trainer.optim import build_optimizer
from trainer.ranks import Ranks
from trainer.steps import Learner, step_for
from trainer.target_spec import HardTarget
from trainer.targets import build_target

NUM_STEPS = 6
BATCH_SIZE = 24


def main(rank: int, world_size: int, folder: Path, method_json: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world_size)
    method = TypeAdapter(MethodSpec).validate_json(method_json)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)).double()
    ranks = Ranks(rank, world_size, torch.device("cpu"))
    optimizer = build_optimizer(method, model, num_examples=100, seed=1)
    learner = Learner(wrap(model, ranks), optimizer, build_target(HardTarget(), 3), nullcontext)
    torch.manual_seed(100 + rank)  # what a rank draws elsewhere doesn't matter
    generator = torch.Generator().manual_seed(2)
    for _ in range(NUM_STEPS):
        images_BCHW = torch.randn(BATCH_SIZE, 1, 6, 6, generator=generator, dtype=torch.float64)
        labels_B = torch.randint(3, (BATCH_SIZE,), generator=generator)
        mine = slice(rank, None, world_size)
        weights_B = torch.full((len(labels_B[mine]),), world_size / BATCH_SIZE, dtype=torch.float64)
        step_for(method)(learner, images_BCHW[mine], labels_B[mine], weights_B)
    means = [p.detach() for p in model.parameters()]
    states = [optimizer.state[p][name] for p in model.parameters() for name in ("momentum", "hess")]
    torch.save([*means, *states], folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
