"""A run watched from a terminal: a progress bar, or plain lines where the output is no terminal."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Self, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from trainer import run_schema
from trainer.run_schema import EpochSummary, EvaluationFigure, LabelKind, Predictor, Split, evaluation_metric
from trainer.supervisor import Order

LINE_INTERVAL_S = 10.0
SHOWN_METRICS = (
    "train/loss",
    "train/accuracy",
    *(
        evaluation_metric(split, labels, predictor, figure)
        for split in get_args(Split)
        for labels in get_args(LabelKind)
        for predictor in get_args(Predictor)
        for figure in get_args(EvaluationFigure)
        if figure != "brier"
    ),
)


class ConsoleSupervisor:
    """Shows progress on stderr; Ctrl-C asks for a stop, a second Ctrl-C ends the process. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._stop = threading.Event()
        self._line_s = -LINE_INTERVAL_S
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps · {task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=None, epoch="-", figures="starting")

    def __enter__(self) -> Self:
        self._bar.start()
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._previous)

    @property
    def order(self) -> Order:
        """To stop, once Ctrl-C was pressed."""
        return "stop" if self._stop.is_set() else "continue"

    def began(self, finished_epochs: tuple[EpochSummary, ...]) -> None:
        """Say where a run is taken up again."""
        if finished_epochs:
            self._console.print(f"resuming after epoch {finished_epochs[-1].epoch}", highlight=False)

    def progress(self, progress: run_schema.Progress) -> None:
        """Move the bar, or print a line now and then."""
        figures = _figures(progress)
        epoch = f"{progress.epoch}/{progress.num_epochs}"
        self._bar.update(self._task, total=progress.num_steps, completed=progress.step, epoch=epoch, figures=figures)
        now_s = time.monotonic()
        if not self._console.is_terminal and now_s - self._line_s >= LINE_INTERVAL_S:
            self._line_s = now_s
            line = f"epoch {epoch} step {progress.step}/{progress.num_steps} {figures}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def epoch_finished(self, summary: EpochSummary) -> None:
        """Print the epoch's figures."""
        self._console.print(f"epoch {summary.epoch} done: {headline(summary)}", highlight=False, soft_wrap=True)

    def _interrupted(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._console.print("stopping after this step; Ctrl-C again ends at once")


def headline(summary: EpochSummary) -> str:
    """The figures of an epoch that people look at first, in a line."""
    return "  ".join(f"{name} {summary.metrics[name]:.4f}" for name in SHOWN_METRICS if name in summary.metrics)


def _figures(progress: run_schema.Progress) -> str:
    parts: list[str] = [progress.phase]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.images_per_s is not None:
        parts.append(f"{progress.images_per_s:.0f} images/s")
    if progress.eta_s is not None:
        minutes, seconds = divmod(round(progress.eta_s), 60)
        parts.append(f"eta {minutes}:{seconds:02d}")
    return " · ".join(parts)
