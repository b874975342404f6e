"""One rank of test_sam_ranks: takes a few steps of each method on its share of each batch, and saves where it ended.

Run as `sam_one_rank.py RANK WORLD_SIZE FOLDER`; the ranks find each other through a file in FOLDER.
"""

import math
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.ddp import without_compiler, wrap
from trainer.method_spec import ASAMSpec, BSAMSpec, LookSAMSpec, MethodSpec, MSAMSpec, SAMSpec
from trainer.optim import build_optimizer
from trainer.ranks import Ranks
from trainer.steps import Learner, step_for
from trainer.target_spec import HardTarget
from trainer.targets import build_target

METHODS: dict[str, SAMSpec | ASAMSpec | LookSAMSpec | MSAMSpec | BSAMSpec] = {
    "sam": SAMSpec(lr=0.2, rho=0.3),
    "asam": ASAMSpec(lr=0.2, rho=0.5, nesterov=True),
    "looksam": LookSAMSpec(lr=0.2, rho=0.3, k=3, alpha=0.4),
    "msam": MSAMSpec(lr=0.2, rho=0.3),
    "bsam": BSAMSpec(lr=0.2, ess=50, rho=0.2, beta2=0.9),
}
NUM_STEPS = 5
BATCH_SIZE = 24
SEED = 1


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers).double()


def share(step: int, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    """A rank's images and labels of a step."""
    generator = torch.Generator().manual_seed(step)
    images_BCHW = torch.randn(BATCH_SIZE, 1, 6, 6, generator=generator, dtype=torch.float64)
    labels_B = torch.randint(3, (BATCH_SIZE,), generator=generator)
    return images_BCHW[rank::world_size], labels_B[rank::world_size]


def learner_for(method: MethodSpec, ranks: Ranks) -> Learner:
    model = small_net()
    with without_compiler():
        optimizer = build_optimizer(method, model, num_examples=100, seed=SEED)
    return Learner(wrap(model, ranks), optimizer, build_target(HardTarget(), 3), nullcontext)


def take_step(method: MethodSpec, learner: Learner, number: int, ranks: Ranks) -> None:
    images_BCHW, labels_B = share(number, ranks.rank, ranks.world_size)
    weights_B = torch.full((len(labels_B),), ranks.world_size / BATCH_SIZE, dtype=torch.float64)
    step_for(method)(learner, images_BCHW, labels_B, weights_B)


def trained(method: MethodSpec, ranks: Ranks) -> dict[str, object]:
    """Weights and optimizer state that the rank ended with, and its own running statistics."""
    learner = learner_for(method, ranks)
    for number in range(NUM_STEPS):
        take_step(method, learner, number, ranks)
    return {"model": learner.model.module.state_dict(), "optimizer": learner.optimizer.state_dict()}


def skipped(method: MethodSpec, ranks: Ranks) -> dict[str, object]:
    """The same after a step in whose first pass rank 0 alone meets a NaN, and one more without."""
    learner = learner_for(method, ranks)
    take_step(method, learner, 0, ranks)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    passes = 0

    def poison(_module: nn.Module, _inputs: object, logits_BC: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return logits_BC * (math.nan if passes == 1 and ranks.rank == 0 else 1.0)

    hook = learner.model.module.register_forward_hook(poison)
    take_step(method, learner, 1, ranks)
    hook.remove()
    stayed = all(torch.equal(p, old) for p, old in zip(learner.model.parameters(), before, strict=True))
    take_step(method, learner, 2, ranks)
    optimizer = learner.optimizer.state_dict()
    return {"model": learner.model.module.state_dict(), "optimizer": optimizer, "stayed": stayed}


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world_size)
    ranks = Ranks(rank, world_size, torch.device("cpu"))
    results = {name: {"trained": trained(m, ranks), "skipped": skipped(m, ranks)} for name, m in METHODS.items()}
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
