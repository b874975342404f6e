"""Unreadable examples over all ranks: listed in one file, and too many of them fail the job on all ranks at once.

A rank finds only the examples that it was to read, another epoch's order gives them to others, and a rank that gave up
alone would leave the rest waiting for it. So no loader gives up by itself here: the ranks ask each other at points that
all of them reach.
"""

from __future__ import annotations

import json

import torch

from data_pipeline.errors import QuarantineLimitError
from data_pipeline.examples import ExampleTable
from data_pipeline.spec import num_tolerated
from trainer.run import Position, Run
from trainer.run_schema import QUARANTINE_FILE

NUM_NAMED = 3
"""Examples that the error names itself."""


def hold_to_limit(run: Run, position: Position) -> None:
    """QuarantineLimitError, once they are listed, if too much of a split is unreadable. Called by all ranks."""
    tables = {part.table.split: part.table for part in (run.data.train, *run.data.evaluated.values())}
    own = _own(run)
    counts = run.ranks.sum_(torch.tensor([len(own[split]) for split in tables]))
    if all(count <= _limit(run, table) for table, count in zip(tables.values(), counts.tolist(), strict=True)):
        return
    # Ranks may have found the same ones: only the list tells.
    found = publish(run, position)
    problems = [_problem(run, table, found) for table in tables.values()]
    message = run.ranks.broadcast_text(next((problem for problem in problems if problem), ""))
    if message:
        raise QuarantineLimitError(message)


def publish(run: Run, position: Position) -> dict[str, dict[str, str]]:
    """Write the list, with what earlier attempts had found; by split, a line for each id, on rank 0. Called by all."""
    found: dict[str, dict[str, str]] = {}
    for text in run.ranks.gather_text(json.dumps(_own(run))) or ():
        for split, lines in json.loads(text).items():
            found.setdefault(split, {}).update(lines)
    if any(found.values()):
        path = run.folder.path / QUARANTINE_FILE
        before = path.read_text().splitlines() if path.exists() else []
        all_lines = {json.loads(line)["example_id"]: line for line in before}
        for lines in found.values():
            all_lines |= lines
        content = "".join(f"{line}\n" for line in sorted(all_lines.values())).encode()
        run.folder.publish(QUARANTINE_FILE, content, step=position.step, epoch=position.epoch)
    return found


def _own(run: Run) -> dict[str, dict[str, str]]:
    """By split, a line for the id of each example that this rank found."""
    own: dict[str, dict[str, str]] = {}
    for part in (run.data.train, run.data.tracked, *run.data.evaluated.values()):
        lines = own.setdefault(part.table.split, {})
        for bad in part.loader.quarantine:
            row = {"example_id": bad.example_id, "shard": bad.shard, "reason": bad.reason}
            lines[bad.example_id] = json.dumps(row)
    return own


def _limit(run: Run, table: ExampleTable) -> int:
    return num_tolerated(run.spec.data.max_bad_fraction, len(table))


def _problem(run: Run, table: ExampleTable, found: dict[str, dict[str, str]]) -> str:
    """What is wrong with a split, "" if nothing is."""
    rows = [json.loads(line) for line in found.get(table.split, {}).values()]
    if len(rows) <= _limit(run, table):
        return ""
    named = "; ".join(f"{row['example_id']}: {row['reason']}" for row in rows[:NUM_NAMED])
    return (
        f"{len(rows)} of {len(table)} examples of {table.split!r} are unreadable; data.max_bad_fraction ="
        f" {run.spec.data.max_bad_fraction:g} tolerates {_limit(run, table)}. {QUARANTINE_FILE} lists them; the first:"
        f" {named}"
    )
