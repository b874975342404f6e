"""One rank of test_per_rank_job: runs jobs one after the other through the trainer, and saves how each ended.

Run as `job_one_rank.py RANK WORLD_SIZE FOLDER`. FOLDER holds jobs.json, a list of (spec, name of the run folder,
phase in which to stop or null).
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.training import Watcher, context_for
from trainer import loop
from trainer.optim import ivon
from trainer.optim.rank_average import Averages, Estimate
from trainer.ranks import joined_ranks
from trainer.run import Position, Run
from trainer.run_schema import AttemptResult
from trainer.spec import JobSpec

finish = loop.finish


def main(rank: int, world_size: int, folder: Path) -> None:
    states, num_epochs_found = [], []

    def noted(run: Run, position: Position) -> AttemptResult:
        optimizer = run.learner.optimizer
        states.append([(p.detach(), *optimizer.state[p].values()) for p in run.network.parameters()])
        return finish(run, position)

    def nothing_left(parameters: list[torch.Tensor], estimate: Estimate | None) -> Averages:
        assert not parameters, "DDP's hook has averaged everything"
        return {}

    loop.finish, ivon.average_now = noted, nothing_left
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world_size)
    with joined_ranks(use_gpu=False) as ranks:
        for spec, name, stop_in in json.loads((folder / "jobs.json").read_text()):
            watcher = Watcher(stop_in=stop_in)
            loop.train(context_for(JobSpec.model_validate(spec), folder / name), ranks, watcher)
            num_epochs_found.append(len(watcher.before))
    torch.save((states, num_epochs_found), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
