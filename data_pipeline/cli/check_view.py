"""What `hush data check` prints: what is wrong, files first, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console

from data_pipeline.check import Problem
from data_pipeline.manifest import Manifest

NUM_EXAMPLES_SHOWN = 10
"""Of each file; a shard that was cut has hundreds."""


def print_problems(console: Console, manifest: Manifest, problems: Sequence[Problem], *, decoded: bool) -> None:
    """A line each, then how much is wrong and what to do; or that nothing is."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    num_examples = sum(split.num_examples for split in manifest.splits.values())
    read = f"{num_shards:,} shards with {num_examples:,} pictures" + (", each of which decodes" if decoded else "")
    if not problems:
        say(f"{manifest.name}: all is as the manifest says: {read}")
        return
    of_files = [problem for problem in problems if problem.example_id is None]
    of_examples = [problem for problem in problems if problem.example_id is not None]
    for problem in of_files:
        say(str(problem))
    for file, group in groupby(of_examples, key=lambda problem: problem.file):
        of_file = list(group)
        for problem in of_file[:NUM_EXAMPLES_SHOWN]:
            say(str(problem))
        if len(of_file) > NUM_EXAMPLES_SHOWN:
            say(f"{file}: … and {len(of_file) - NUM_EXAMPLES_SHOWN:,} more examples; --json lists all")
    num_files = len({problem.file for problem in problems})
    say(
        f"{manifest.name} is not as the manifest says: {len(of_examples):,} of {num_examples:,} examples,"
        f" {num_files:,} of its files"
    )
    if of_files and manifest.recipe.owns_shards:
        say("build it again by the same command: what is damaged is written anew")
