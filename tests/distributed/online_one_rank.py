"""One rank of test_online_ranks: observes its share of two epochs and saves the soft labels that it ends with.

Run as `online_one_rank.py RANK WORLD_SIZE FOLDER [STATE_FILE]`; the ranks find each other through a file in FOLDER.
With a STATE_FILE they go on from there. Without one they begin, save their state in the midst of the first epoch as
FOLDER/state<RANK>.pt, and go on twice: with the target that was saved, and with one that took up the state.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from trainer.ranks import Ranks
from trainer.target_spec import OnlineTarget
from trainer.targets import Target, build_target

NUM_BATCHES = 5
SAVED_AFTER = 3
BATCH_SIZE = 12


def observe(target: Target, batches: range, rank: int, world_size: int) -> None:
    """Observe every world_size-th example of some batches."""
    for batch in batches:
        generator = torch.Generator().manual_seed(batch)
        logits_BC = 2 * torch.randn(BATCH_SIZE, 5, generator=generator)
        labels_B = torch.randint(5, (BATCH_SIZE,), generator=generator)
        valid_B = torch.rand(BATCH_SIZE, generator=generator) < 0.8
        mine = slice(rank, None, world_size)
        target.observe(logits_BC[mine], labels_B[mine], valid_B[mine])


def observe_rest(target: Target, rank: int, world_size: int, first_batch: int = 0) -> None:
    """The rest of the first epoch, and a second of two batches, in which some classes are never right."""
    observe(target, range(first_batch, NUM_BATCHES), rank, world_size)
    target.finish_epoch()
    observe(target, range(NUM_BATCHES, NUM_BATCHES + 1), rank, world_size)
    target.finish_epoch()


def main(rank: int, world_size: int, folder: Path, state_file: Path | None) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world_size)
    ranks = Ranks(rank, world_size, torch.device("cpu"))
    target, taken_up = build_target(OnlineTarget(), 5, ranks), build_target(OnlineTarget(), 5, ranks)
    if state_file is None:
        observe(target, range(SAVED_AFTER), rank, world_size)
        state = target.state_dict()
        torch.save(state, folder / f"state{rank}.pt")
        targets = [target, taken_up]
    else:
        state = torch.load(state_file, weights_only=True)
        targets = [taken_up]
    taken_up.load_state_dict(state)
    for each in targets:
        observe_rest(each, rank, world_size, first_batch=SAVED_AFTER)
    torch.save([each.state_dict()["soft_CC"] for each in targets], folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]) if len(sys.argv) > 4 else None)
