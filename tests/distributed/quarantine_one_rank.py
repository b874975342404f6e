"""One rank of test_quarantine_ranks: runs jobs one after the other, and saves how each ended.

Run as `quarantine_one_rank.py RANK WORLD_SIZE FOLDER`. FOLDER holds jobs.json: a list of (spec, name of run folder).
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from data_pipeline.errors import QuarantineLimitError
from tests.training import Watcher, context_for
from trainer import loop
from trainer.ranks import joined_ranks
from trainer.spec import JobSpec


def main(rank: int, world_size: int, folder: Path) -> None:
    ends = []
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world_size)
    with joined_ranks(use_gpu=False) as ranks:
        for spec, name in json.loads((folder / "jobs.json").read_text()):
            try:
                result = loop.train(context_for(JobSpec.model_validate(spec), folder / name), ranks, Watcher())
                ends.append(f"{result.num_steps} steps")
            except QuarantineLimitError as error:
                ends.append(str(error))
    torch.save(ends, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
