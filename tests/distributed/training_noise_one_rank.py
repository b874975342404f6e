"""One rank of test_training_noise_ranks: a few antithetic IVON steps on its share of each batch, padding included.

Run as `training_noise_one_rank.py RANK WORLD_SIZE FOLDER`; the ranks find each other through a file in FOLDER. After
RESUME_AFTER steps each rank's state is saved and loaded again, as a checkpoint does.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from trainer.ddp import wrap
from trainer.label_noise.training import TrainingNoise
from trainer.method_spec import IVONSpec
from trainer.optim import build_optimizer
from trainer.ranks import Ranks
from trainer.steps import Learner, step_for
from trainer.target_spec import HardTarget
from trainer.targets import build_target

NUM_TRAIN, BATCH_SIZE, NUM_CLASSES, NUM_STEPS, RESUME_AFTER = 141, 24, 3, 6, 3
TRACKED = np.arange(0, NUM_TRAIN, 7)
METHOD = IVONSpec(lr=0.05, hess_init=0.1, num_mc_samples=2, antithetic=True)


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, NUM_CLASSES)).double()
    ranks = Ranks(rank, world_size, torch.device("cpu"))
    optimizer = build_optimizer(METHOD, model, num_examples=100, seed=1)
    target = build_target(HardTarget(), NUM_CLASSES, ranks)
    learner = Learner(wrap(model, ranks), optimizer, target, nullcontext)
    noise = TrainingNoise(NUM_CLASSES, NUM_TRAIN, TRACKED, ranks)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(NUM_TRAIN, 1, 6, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(NUM_CLASSES, (NUM_TRAIN,), generator=generator)
    order = torch.randperm(NUM_TRAIN, generator=generator)
    order = torch.cat([order, torch.full((NUM_STEPS * BATCH_SIZE - NUM_TRAIN,), -1)])  # the last step is short
    for step, rows in enumerate(order.split(BATCH_SIZE), start=1):
        rows_B = rows[rank::world_size]
        valid_B, labels_B = rows_B >= 0, torch.where(rows_B >= 0, labels[rows_B], 0)
        weights_B = valid_B * (world_size / int((rows >= 0).sum()))
        output = step_for(METHOD)(learner, images[rows_B], labels_B, weights_B.double())
        noise.add(output.epsilon_sq_B, labels_B, valid_B, rows_B)
        if step == RESUME_AFTER:
            state = [noise.state_dict()]
            dist.broadcast_object_list(state)
            noise = TrainingNoise(NUM_CLASSES, NUM_TRAIN, TRACKED, ranks)
            noise.load_state_dict(state[0])
    found = noise.over_ranks()
    held = {"table": found.histogram.table, "tracked": torch.from_numpy(found.tracked_N)}
    torch.save(held, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
