"""Jobs watched from a terminal: a bar for each, fed by its events; plain lines where the output is no terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Final, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from service.cli.screen import duration, event_line, state_text
from service.client import Client, Happening
from service.jobs.states import TERMINAL_STATES, JobState
from service.schemas import EventView, JobView
from trainer.run_schema import Progress

LINE_INTERVAL_S: Final = 10.0
"""Seconds between two lines about progress where there are no bars."""
WIDE: Final = 120
"""Columns from which the step is written beside the bar that shows it."""
SUCCEEDED, NOT_SUCCEEDED, DETACHED = 0, 1, 130


class JobScreen:
    """A bar for each job, and a line for each thing that happens. A context manager."""

    def __init__(self, jobs: Sequence[JobView], console: Console, *, epoch_lines: bool = True) -> None:
        """`epoch_lines`: whether a finished epoch gets a line with its figures."""
        self._console = console
        self._epoch_lines = epoch_lines
        width = max(len(job.name) for job in jobs)
        self._names = {job.id: job.name.ljust(width) if len(jobs) > 1 else "" for job in jobs}
        self._spoken_at = dict.fromkeys(self._names, -LINE_INTERVAL_S)
        self._bars = Bars(
            TextColumn("{task.description}"),
            TextColumn("{task.fields[state]}"),
            BarColumn(bar_width=20, style="dim", complete_style="cyan", finished_style="green"),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        for job in jobs:
            self._tasks[job.id] = self._bars.add_task(job.name, total=None, state=state_text(job.state), figures="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, job_id: str, happening: Happening) -> None:
        """Show what happened to a job; to be called from one thread at a time."""
        task = self._tasks[job_id]
        match happening:
            case EventView():
                if happening.epoch is None or self._epoch_lines:
                    self._console.print(event_line(happening, self._names[job_id]), soft_wrap=True)
                self._bars.update(task, state=state_text(happening.state))
            case Progress():
                # num_steps is 0 until the data set has been opened; a bar without a total moves to and fro.
                figures = _figures(happening, with_step=self._console.width >= WIDE)
                self._bars.update(task, total=happening.num_steps or None, completed=happening.step, figures=figures)
                self._maybe_print(job_id, figures)
            case JobView():
                if happening.state is JobState.SUCCEEDED:
                    self._bars.update(task, total=1, completed=1)
                self._bars.update(task, state=state_text(happening.state), figures=Text(_ran_for(happening)))
                self._bars.stop_task(task)

    def _maybe_print(self, job_id: str, figures: Text) -> None:
        """Without bars: a line now and then."""
        now = time.monotonic()
        if not self._console.is_terminal and now - self._spoken_at[job_id] >= LINE_INTERVAL_S:
            self._spoken_at[job_id] = now
            name = f"{self._names[job_id]}  " if self._names[job_id] else ""
            self._console.print(Text(f"          {name}").append_text(figures), soft_wrap=True)


def follow_job(client: Client, job: JobView, *, as_json: bool) -> int:
    """Watch a job until it has ended, or Ctrl-C; the exit code."""
    try:
        ended = _follow_json(client, job) if as_json else _follow_screen(client, job)
    except KeyboardInterrupt:
        typer.echo(f"\ndetached; {job.name} goes on", err=True)
        typer.echo(f"  watch again   hush events {job.id} --follow", err=True)
        typer.echo(f"  cancel        hush cancel {job.id}", err=True)
        return DETACHED
    return SUCCEEDED if ended.state is JobState.SUCCEEDED else NOT_SUCCEEDED


def _follow_screen(client: Client, job: JobView) -> JobView:
    screen = JobScreen([job], Console(highlight=False, stderr=True))
    with screen:
        ended = _watch(client, job, screen)
    out = Console(highlight=False)
    out.print(Text.assemble(f"{job.name}  ", state_text(ended.state), f"  {_ran_for(ended)}"))
    if ended.links.mlflow:
        out.print(f"  MLflow     {ended.links.mlflow}", soft_wrap=True)
    if ended.state is JobState.SUCCEEDED:
        out.print(f"  examples   hush examples {job.id}", soft_wrap=True)
    return ended


def _watch(client: Client, job: JobView, screen: JobScreen) -> JobView:
    for happening in client.follow(job.id):
        screen.show(job.id, happening)
        if isinstance(happening, JobView):
            return happening
    raise AssertionError("follow ends with the job")


def _follow_json(client: Client, job: JobView) -> JobView:
    """A JSON document a line: `{"event": ..., "data": ...}`; the first is the job as it was."""
    _print_line("job", job)
    for happening in client.follow(job.id):
        match happening:
            case EventView():
                _print_line(happening.kind, happening)
            case Progress():
                _print_line("progress", happening)
            case JobView():
                _print_line("end", happening)
                return happening
    raise AssertionError("follow ends with the job")


def _print_line(event: str, data: Happening) -> None:
    print(json.dumps({"event": event, "data": data.model_dump(mode="json")}), flush=True)


def _figures(progress: Progress, *, with_step: bool) -> Text:
    parts = [progress.phase if progress.epoch == 0 else f"epoch {progress.epoch}/{progress.num_epochs}"]
    if progress.epoch and progress.phase != "training":
        parts.append(progress.phase)
    if with_step and progress.num_steps:
        parts.append(f"step {progress.step}/{progress.num_steps}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.images_per_s is not None:
        parts.append(f"{progress.images_per_s:,.0f} images/s")
    if progress.eta_s is not None:
        parts.append(f"eta {duration(progress.eta_s)}")
    return Text(" · ".join(parts))


def _ran_for(job: JobView) -> str:
    if job.started_at is None or job.ended_at is None or job.state not in TERMINAL_STATES:
        return ""
    return f"trained for {duration((job.ended_at - job.started_at).total_seconds())}"
