"""Unreadable examples over all ranks: listed in one file, and too many of them fail the job on all ranks at once.

A rank finds only the examples that it was to read, another epoch's order gives them to others, and a rank that gave up
alone would leave the rest waiting for it. So no loader gives up by itself here: the ranks ask each other at points that
all of them reach.
"""

from __future__ import annotations

import json

import torch

from data_pipeline.errors import QuarantineLimitError
from data_pipeline.spec import num_tolerated
from trainer.job_data import Part
from trainer.run import Position, Run
from trainer.run_schema import QUARANTINE_FILE

NUM_NAMED = 3
"""Examples that the error names itself."""


def hold_to_limit(run: Run, position: Position) -> None:
    """QuarantineLimitError, once they are listed, if too much of a split is unreadable. Called by all ranks."""
    parts = [run.data.train, *run.data.evaluated.values()]
    counts = run.ranks.sum_(torch.tensor([len(part.loader.quarantine) for part in parts]))
    if all(count <= _limit(run, part) for part, count in zip(parts, counts.tolist(), strict=True)):
        return
    # Ranks may have found the same ones: only the list tells.
    found = publish(run, position)
    problems = [_problem(run, part, found) for part in parts]
    message = run.ranks.broadcast_text(next((problem for problem in problems if problem), ""))
    if message:
        raise QuarantineLimitError(message)


def publish(run: Run, position: Position) -> dict[str, dict[str, str]]:
    """Write the list, with what earlier attempts had found; by split, a line for each id, on rank 0. Called by all."""
    parts = [run.data.train, run.data.tracked, *run.data.evaluated.values()]
    own: dict[str, dict[str, str]] = {}
    for part in parts:
        lines = own.setdefault(part.table.split, {})
        for bad in part.loader.quarantine:
            row = {"example_id": bad.example_id, "shard": bad.shard, "reason": bad.reason}
            lines[bad.example_id] = json.dumps(row)
    found: dict[str, dict[str, str]] = {}
    for text in run.ranks.gather_text(json.dumps(own)) or ():
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


def _limit(run: Run, part: Part) -> int:
    return num_tolerated(run.spec.data.max_bad_fraction, len(part.table))


def _problem(run: Run, part: Part, found: dict[str, dict[str, str]]) -> str:
    """What is wrong with a part, "" if nothing is."""
    rows = [json.loads(line) for line in found.get(part.table.split, {}).values()]
    if len(rows) <= _limit(run, part):
        return ""
    named = "; ".join(f"{row['example_id']}: {row['reason']}" for row in rows[:NUM_NAMED])
    return (
        f"{len(rows)} of {len(part.table)} examples of {part.table.split!r} are unreadable; data.max_bad_fraction ="
        f" {run.spec.data.max_bad_fraction:g} tolerates {_limit(run, part)}. {QUARANTINE_FILE} lists them; the first:"
        f" {named}"
    )
