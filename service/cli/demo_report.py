"""What came out of the demo, as a model for scripts and as tables and pictures for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.cli.screen import duration, examples_table, plain_table
from service.client import Client
from service.jobs.states import TERMINAL_STATES, JobState
from service.result_schemas import ExampleView
from service.schemas import EventView, JobView
from trainer.run_schema import Estimator

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NUM_SUSPECTS: Final = 100
NUM_SHOWN: Final = 10
PER_ROW: Final = 5
WHITE: Final = 16.0
"""Brightest pixel of scikit-learn's digits."""


class JobTiming(BaseModel):
    """Where the time of a job went, in seconds; null for what it did not come to."""

    queued_s: float | None = None
    """From submitted until handed to Ray: the start of Ray, or another job that needs the CPUs."""
    starting_s: float | None = None
    """From there until the first sign of rank 0: processes and imports."""
    training_s: float | None = None
    """From there to the end."""


class Timing(BaseModel):
    """Where the time of the demo went, in seconds."""

    data_s: float = 0
    """Building the data set, while the service started."""
    parts_ready_s: dict[str, float] = {}
    """From the start of each part until it answered; empty if the service ran already."""
    jobs: dict[str, JobTiming] = {}
    total_s: float = 0

    def lines(self) -> str:
        """All of it: a line for the whole, and one for each job."""
        first = [f"time {duration(self.total_s)}"]
        first += [f"{name} up after {seconds:.0f} s" for name, seconds in self.parts_ready_s.items()]
        first += [f"data built in {self.data_s:.0f} s"]
        lines = [" · ".join(first)]
        for name, job in self.jobs.items():
            spans = {"queued": job.queued_s, "starting": job.starting_s, "training": job.training_s}
            known = [f"{what} {duration(seconds)}" for what, seconds in spans.items() if seconds is not None]
            lines.append(f"{name}: {' · '.join(known)}")
        return "\n".join(lines)


class JobReport(BaseModel):
    """One job of the demo."""

    id: str
    name: str
    state: JobState
    message: str | None
    mlflow: str | None
    test_accuracy: float | None = None
    test_nll: float | None = None
    test_ece: float | None = None
    averaged_accuracy: float | None = None
    """On the test split too, predicted by the average over weight samples; null without a posterior."""
    averaged_nll: float | None = None
    averaged_ece: float | None = None
    epsilon: dict[Estimator, dict[str, float]] = {}
    """Percentiles of ‖ε‖₂ over the tracked examples after the last epoch, by estimator; empty without a posterior."""
    suspects: list[ExampleView] = []
    """The most suspect training examples."""
    suspect_precision: float | None = None
    """Share of the 100 most suspect ones whose label is wrong."""


class DemoReport(BaseModel):
    """What came out."""

    jobs: list[JobReport]
    api_docs: str
    timing: Timing


def job_timing(events: Sequence[EventView]) -> JobTiming:
    """From a job's events; of an attempt that was repeated, the first one's start."""
    at: dict[str, datetime] = {}
    for event in events:
        what = "ended" if event.state in TERMINAL_STATES else event.state.value
        at.setdefault(what, event.time)

    def between(start: str, end: str) -> float | None:
        return (at[end] - at[start]).total_seconds() if start in at and end in at else None

    return JobTiming(
        queued_s=between("QUEUED", "STARTING"),
        starting_s=between("STARTING", "RUNNING"),
        training_s=between("RUNNING", "ended"),
    )


def job_report(client: Client, job: JobView) -> JobReport:
    """Ask the service for all that the report says of a job."""
    report = JobReport(id=job.id, name=job.name, state=job.state, message=job.message, mlflow=job.links.mlflow)
    if job.state is not JobState.SUCCEEDED:
        return report
    evaluation = client.evaluation(job.id)
    test, averaged = evaluation.splits["test"], evaluation.averaged.get("test")
    noise = client.label_noise(job.id)[-1]
    suspects = list(islice(client.examples(job.id, page=NUM_SUSPECTS), NUM_SUSPECTS))
    return report.model_copy(
        update={
            "test_accuracy": test.accuracy,
            "test_nll": test.nll,
            "test_ece": test.ece,
            "averaged_accuracy": averaged and averaged.accuracy,
            "averaged_nll": averaged and averaged.nll,
            "averaged_ece": averaged and averaged.ece,
            "epsilon": {name: histogram.quantiles for name, histogram in noise.overall.items()},
            "suspects": suspects[:NUM_SHOWN],
            "suspect_precision": sum(e.clean_label != e.given_label for e in suspects) / max(1, len(suspects)),
        }
    )


def print_report(console: Console, report: DemoReport) -> None:
    """Tables, pictures and addresses."""
    succeeded = [job for job in report.jobs if job.state is JobState.SUCCEEDED]
    console.print()
    if succeeded:
        names = [job.name for job in succeeded]
        table = plain_table("", *names, right=names)
        for row in zip(_FIGURES, *(_figures(job) for job in succeeded), strict=True):
            table.add_row(*row)
        console.print(table)
        console.print(Text("‖ε‖: how much each training example's label is smoothed\n", style="dim"))
    for job in report.jobs:
        if job.state is not JobState.SUCCEEDED:
            console.print(
                Text.assemble(f"{job.name}  ", (job.state, "bold red"), f"  {job.message or ''}"), soft_wrap=True
            )
    first = next((job for job in report.jobs if job.suspects), None)
    if first is not None:
        console.print(f"Most likely mislabelled, by {first.name}:\n")
        console.print(_pictures(first.suspects) if console.color_system else examples_table(first.suspects))
    console.print()
    for job in report.jobs:
        if job.mlflow:
            console.print(f"  {job.name:<20}  {job.mlflow}", soft_wrap=True)
    console.print(f"  {'API docs':<20}  {report.api_docs}\n", soft_wrap=True)


_FIGURES: Final = (
    *("test accuracy", "test NLL", "test ECE"),
    "all three, samples averaged",
    *("‖ε‖ exact, p50 / p95", "‖ε‖ linearised, p50 / p95"),
    f"wrong in {NUM_SUSPECTS} most suspect",
)


def _figures(job: JobReport) -> list[str]:
    return [
        *(f"{job.test_accuracy:.1%}", f"{job.test_nll:.3f}", f"{job.test_ece:.3f}"),
        _averaged(job),
        *(_quantiles(job.epsilon.get(estimator)) for estimator in ("exact", "linearised")),
        f"{job.suspect_precision:.0%}",
    ]


def _averaged(job: JobReport) -> str:
    if job.averaged_accuracy is None:
        return "—"
    return f"{job.averaged_accuracy:.1%} / {job.averaged_nll:.3f} / {job.averaged_ece:.3f}"


def _quantiles(quantiles: dict[str, float] | None) -> str:
    return "—" if quantiles is None else f"{quantiles['p50']:.2g} / {quantiles['p95']:.2g}"


def _pictures(examples: Sequence[ExampleView]) -> Table:
    """A few to a row."""
    grid = Table.grid(padding=(0, 3))
    for start in range(0, len(examples), PER_ROW):
        grid.add_row(*(_picture(example) for example in examples[start : start + PER_ROW]))
        grid.add_row()
    return grid


def _picture(example: ExampleView) -> Text:
    """The scan in 8 x 4 half blocks, with the label it was given and the true one."""
    wrong = example.clean_label != example.given_label
    caption = Text.assemble(
        f"given {example.given_class}\n", (f"true  {example.clean_class}", "red" if wrong else "green")
    )
    return half_blocks(_scan(example.example_id)).append("\n").append_text(caption)


def half_blocks(image_HW: npt.NDArray[np.float64]) -> Text:
    """A grey picture, two rows of pixels to a line of text."""
    text = Text()
    for top, bottom in zip(image_HW[0::2], image_HW[1::2], strict=True):
        for upper, lower in zip(top, bottom, strict=True):
            text.append("▀", style=f"{_grey(upper)} on {_grey(lower)}")
        text.append("\n")
    text.rstrip()
    return text


def _grey(value: float) -> str:
    level = round(255 * min(1.0, max(0.0, value / WHITE)))
    return f"rgb({level},{level},{level})"


def _scan(example_id: str) -> npt.NDArray[np.float64]:
    """The scan behind an example of data_pipeline.sources.digits."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - a second

    images = load_digits().images
    return images[int(example_id.removeprefix("digit-"))]  # type: ignore[no-any-return]  # untyped
