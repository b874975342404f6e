"""What the command line prints for people: jobs, events, figures, examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, get_args

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.jobs.states import JobState
from service.result_schemas import ExampleEpoch, ExampleSort, ExampleView, ModelView
from service.schemas import AttemptView, EventView, JobView, LogView
from trainer.run_schema import EvaluationReport, LabelKind, LabelNoiseRecord, Predictor, Split, evaluation_metric

RICH_DEFAULT_COLUMNS: Final = 80
"""What rich takes where there is neither a terminal nor COLUMNS."""
PIPED_COLUMNS: Final = 200

_STATE_STYLES: Final = {
    JobState.QUEUED: "dim",
    JobState.STARTING: "cyan",
    JobState.RUNNING: "cyan",
    JobState.RECOVERING: "yellow",
    JobState.CANCELLING: "yellow",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "bold red",
    JobState.CANCELLED: "dim",
}


def _evaluation_figures() -> Iterator[tuple[str, str, str]]:
    for split in get_args(Split):
        for labels in get_args(LabelKind):
            for predictor in get_args(Predictor):
                how = f"{' averaged' * (predictor == 'averaged')}{' (given labels)' * (labels == 'given')}"
                yield evaluation_metric(split, labels, predictor, "accuracy"), f"{split} accuracy{how}", ".1%"
                yield evaluation_metric(split, labels, predictor, "nll"), "nll", ".3f"
                yield evaluation_metric(split, labels, predictor, "ece"), "ece", ".3f"


_EPOCH_FIGURES: Final = (
    ("train/loss", "loss", ".3f"),
    *_evaluation_figures(),
    ("label_noise/exact/p50", "ε p50", ".4f"),
)
"""Metric, what it is called in a line about an epoch, and its format."""


def console() -> Console:
    """stdout, without rich's colouring of numbers and paths, and without its markup: brackets in an address or an error
    are theirs. Wide where it is no terminal, so that nothing is cut."""
    out = Console(highlight=False, markup=False)
    if not out.is_terminal and out.width == RICH_DEFAULT_COLUMNS:
        out.width = PIPED_COLUMNS
    return out


def plain_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table with a rule under its header and no other lines; columns named in `right` are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return table


def state_text(state: str) -> Text:
    """A state of a job, or of a study, in its colour."""
    return Text(str(state), style=_STATE_STYLES[JobState(state)])


def job_state(text: str) -> JobState:
    """A state, in capitals or not; ValueError names them all."""
    if text.upper() not in JobState.__members__:
        raise ValueError(f"--state {text}: must be one of {', '.join(JobState)}")
    return JobState(text.upper())


def example_sort(text: str) -> ExampleSort:
    """A column that examples can be sorted by; ValueError names them all."""
    for sort in get_args(ExampleSort):
        if sort == text:
            return sort  # type: ignore[no-any-return]  # get_args forgets the Literal's type
    raise ValueError(f"--sort {text}: must be one of {', '.join(get_args(ExampleSort))}")


def duration(seconds: float) -> str:
    """`8 s`, `3:05`, `1:02:09`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours}:{m:02d}:{s:02d}"
    return f"{m}:{s:02d}" if m else f"{s} s"


def print_jobs(jobs: Sequence[JobView]) -> None:
    """A line a job."""
    if not jobs:
        console().print("no jobs yet; submit one with: hush submit SPEC.yaml")
        return
    table = plain_table("job", "name", "method", "state", "epoch", "time", "submitted", right=("epoch", "time"))
    for job in jobs:
        epoch = f"{job.progress.epoch}/{job.progress.num_epochs}" if job.progress else "–"
        submitted = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(job.id, job.name, job.method, state_text(job.state), epoch, _run_time(job), submitted)
    console().print(table)


def print_job(job: JobView, evaluation: EvaluationReport | None, noise: LabelNoiseRecord | None) -> None:
    """A job with the figures of its newest epoch."""
    out = console()
    out.print(Text.assemble((job.name, "bold"), "  ", state_text(job.state), f"  {job.reason.replace('_', ' ')}"))
    if job.message:
        out.print(Text(job.message, style="red" if job.state is JobState.FAILED else ""), soft_wrap=True)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("job", f"{job.id} · attempt {job.attempt}")
    facts.add_row("method", f"{job.spec.method.kind} · target {job.spec.target.kind} · {job.spec.model.arch}")
    facts.add_row("data", job.spec.data.manifest)
    if job.progress:
        p = job.progress
        facts.add_row("progress", f"epoch {p.epoch}/{p.num_epochs} · step {p.step}/{p.num_steps} · {_run_time(job)}")
    if job.links.mlflow:
        facts.add_row("MLflow", job.links.mlflow)
    out.print(facts, soft_wrap=True)
    for evaluated in (*evaluation.splits.values(), *evaluation.averaged.values()) if evaluation else ():
        samples = "" if evaluated.num_mc_samples is None else f", {evaluated.num_mc_samples} weight samples averaged"
        out.print(
            f"{evaluated.split:<5} ({evaluated.labels} labels{samples})  accuracy {evaluated.accuracy:.1%}"
            f"  nll {evaluated.nll:.3f}  brier {evaluated.brier:.3f}  ece {evaluated.ece:.3f}"
        )
    for estimator, histogram in noise.overall.items() if noise else ():
        quantiles = "  ".join(f"{name} {value:.4f}" for name, value in histogram.quantiles.items())
        out.print(f"‖ε‖ {estimator:<10} epoch {noise.epoch if noise else ''}  {quantiles}")


def print_attempts(attempts: Sequence[AttemptView]) -> None:
    """Why each attempt but the newest ended; nothing where there was one only."""
    for attempt in attempts[:-1]:
        why = "unknown" if attempt.reason is None else attempt.reason.value.replace("_", " ")
        console().print(Text(f"attempt {attempt.number} ended: {why}", style="yellow"))


def event_line(event: EventView, name: str = "") -> Text:
    """An event in a line: when, what."""
    line = Text(event.time.astimezone().strftime("%H:%M:%S  "), style="dim")
    if name:
        line.append(f"{name}  ", style="default")
    if event.epoch is not None:
        line.append(f"epoch {event.epoch.epoch:<3} ", style="default")
        line.append(epoch_figures(event.epoch.metrics), style="default")
        return line
    line.append_text(state_text(event.state))
    if event.reason is not None:
        line.append(f"  {event.reason.value.replace('_', ' ')}", style="dim")
    if event.message:
        separator = "\n" if "\n" in event.message else ": "
        line.append(separator + event.message, style="red" if event.state is JobState.FAILED else "default")
    return line


def epoch_figures(metrics: dict[str, float]) -> str:
    """The headline figures of an epoch; of val and test, what is there."""
    return " · ".join(f"{name} {metrics[key]:{form}}" for key, name, form in _EPOCH_FIGURES if key in metrics)


def print_event(event: EventView) -> None:
    """An event on stdout."""
    console().print(event_line(event), soft_wrap=True)


def print_logs(logs: Sequence[LogView]) -> None:
    """A line a log."""
    if not logs:
        console().print("no logs yet: they begin with the first attempt")
        return
    table = plain_table("attempt", "log", "bytes", right=("attempt", "bytes"))
    for log in logs:
        table.add_row(str(log.attempt), log.name, f"{log.size_bytes:,}")
    console().print(table)


def examples_table(examples: Sequence[ExampleView]) -> Table:
    """A line an example, the clean label where it is known."""
    numbers = ("", "p(given)", "ε exact", "suspicion")
    table = plain_table("", "example", "given", "predicted", "clean", *numbers[1:], right=numbers)
    for rank, example in enumerate(examples, 1):
        table.add_row(
            str(rank),
            example.example_id,
            example.given_class,
            example.predicted_class,
            clean_text(example),
            _number(example.p_given, ".3f"),
            _number(example.epsilon_exact, ".4f"),
            _number(example.suspicion, ".2f"),
        )
    return table


def history_table(history: Sequence[ExampleEpoch]) -> Table:
    """A line an epoch: what the model said of the example then."""
    numbers = ("epoch", "p(given)", "loss", "ε exact", "suspicion")
    table = plain_table("epoch", "given", "predicted", "clean", *numbers[1:], right=numbers)
    for entry in history:
        table.add_row(
            str(entry.epoch),
            entry.given_class,
            entry.predicted_class,
            clean_text(entry),
            _number(entry.p_given, ".3f"),
            _number(entry.loss, ".3f"),
            _number(entry.epsilon_exact, ".4f"),
            _number(entry.suspicion, ".2f"),
        )
    return table


def model_lines(model: ModelView) -> str:
    """Where it is, a line a place."""
    places = {
        "model": f"{model.arch}, {len(model.classes)} classes, after epoch {model.epoch} of attempt {model.attempt}",
        "file": f"{model.path} ({model.size_bytes:,} bytes)",
        "sha256": model.sha256,
        "MLflow": model.mlflow_uri,
        "checkpoint": model.checkpoint,
    }
    return "\n".join(f"{name:<11}{place}" for name, place in places.items() if place is not None)


def _number(value: float | None, form: str) -> str:
    """A dash for what an unreadable example, or a method without a posterior, does not have."""
    return "–" if value is None else format(value, form)


def clean_text(example: ExampleView) -> Text:
    """The clean label, and whether the given one is it."""
    if example.clean_class is None:
        return Text("–", style="dim")
    wrong = example.clean_label != example.given_label
    return Text(f"{example.clean_class} {'✗' if wrong else '✓'}", style="red" if wrong else "green")


def _run_time(job: JobView) -> str:
    if job.started_at is None:
        return "–"
    return duration(((job.ended_at or datetime.now(UTC)) - job.started_at).total_seconds())
