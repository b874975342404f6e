"""`hush demo`: the whole line on real data in a few minutes, and a report of what came out of it.

Handwritten digits with 30% of the labels wrong; an embedded service, unless one runs already; two jobs over REST. The
main thread serves and takes Ctrl-C, the demo itself is a client in a thread of its own.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar

from rich.console import Console
from rich.text import Text

from service.cli.demo_report import DemoReport, Timing, job_report, job_timing, print_report
from service.cli.follow import JobScreen
from service.client import Client, Happening
from service.client.address import find_address
from service.embedded.home import find_server
from service.embedded.serve import Part, ServeOptions, StopSignals, serve
from service.jobs.states import JobState
from service.schemas import JobView
from trainer.spec import JobSpec
from trainer.spec_errors import load_spec

SPECS: Final = ("digits-ivon.yaml", "digits-sgd-smoothed.yaml")
NOISE_RATE: Final = 0.3
SUCCEEDED, FAILED, INTERRUPTED = 0, 1, 130


@dataclass(frozen=True)
class DemoOptions:
    """What `hush demo` is asked for."""

    home: Path
    keep: bool = False
    """Stay up when done, until Ctrl-C."""
    num_cpus: int | None = None
    as_json: bool = False


_Item = TypeVar("_Item")


class _StoppedError(Exception):
    """Ctrl-C, or the service could not go on."""


def run_demo(options: DemoOptions) -> int:
    """Run the demo; the exit code: 0 only if both jobs have succeeded."""
    began = time.monotonic()
    stop = StopSignals()
    demo = _Demo(options, stop)
    running = find_server(options.home)
    if running is not None:
        demo.say("·", "service", f"the one that runs already, at {running.url}")
        demo.url.put(running.url)
        with stop.installed():
            demo.run()
    else:
        thread = threading.Thread(target=demo.run, name="demo", daemon=True)
        thread.start()
        try:  # not warm: of its two jobs the first would find a spare of one rank, and both have two
            serve(ServeOptions(options.home, num_cpus=options.num_cpus, warm=False), demo.observe, stop)
        finally:
            stop.ask()
            thread.join(timeout=10)
    return demo.finish(time.monotonic() - began)


@dataclass
class _Demo:
    """The client's side: builds, submits, watches, reports."""

    options: DemoOptions
    stop: StopSignals
    url: queue.Queue[str] = field(default_factory=lambda: queue.Queue(1))
    """The API's address, once it answers."""
    console: Console = field(default_factory=lambda: Console(highlight=False))
    began: float = field(default_factory=time.monotonic)
    timing: Timing = field(default_factory=Timing)
    report: DemoReport | None = None
    error: Exception | None = None
    ready_parts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.console.quiet = self.options.as_json

    def observe(self, stage: Literal["serving", "stopping"], parts: Sequence[Part]) -> None:
        """Called by the service that runs in the main thread."""
        for part in parts:
            if part.ready_after_s is not None and part.name not in self.ready_parts:
                self.ready_parts.add(part.name)
                self.timing.parts_ready_s[part.name] = part.ready_after_s
                self.say("✓", part.name, part.url + ("/docs" if part.name == "API" else ""), part.ready_after_s)
                if part.name == "API":
                    self.url.put(part.url)
        if stage == "stopping":
            self.console.print(Text("stopping the service", style="dim"))

    def run(self) -> None:
        """From the data set to the report; then the service may stop."""
        try:
            self.console.print("Handwritten digits, 30% of the training labels wrong; two jobs of 2 workers each\n")
            manifest = self._build()
            found = find_address({}, self._await(self.url), self.options.home)
            with Client(found.url, found.token) as client:
                jobs = [client.submit(spec) for spec in _specs(manifest)]
                ended = self._watch(client, jobs)
                self._report(client, ended)
        except _StoppedError:
            return
        except Exception as error:  # whatever it is, the main thread must not serve on and wait for it
            self.error = error
        if not self.options.keep or self.error:
            self.stop.ask()

    def finish(self, total_s: float) -> int:
        """Last words, and the exit code."""
        if self.error is not None:
            raise self.error
        if self.report is None:
            return INTERRUPTED
        self.timing.total_s = total_s
        if self.options.as_json:
            print(self.report.model_copy(update={"timing": self.timing}).model_dump_json())
        else:
            self.console.print(Text(self.timing.lines(), style="dim"), soft_wrap=True)
        return SUCCEEDED if all(job.state is JobState.SUCCEEDED for job in self.report.jobs) else FAILED

    def say(self, mark: str, what: str, text: str, seconds: float | None = None) -> None:
        """A line about something that is ready."""
        took = "" if seconds is None else f"  {seconds:.1f} s"
        line = Text.assemble((f"{mark} ", "green"), f"{what:<8}", text, (took, "dim"))
        self.console.print(line, soft_wrap=True)

    def _build(self) -> Path:
        """The data set; built twice, it is the same bytes."""
        from data_pipeline.building.build import BuildOptions, build  # noqa: PLC0415 - while the service starts already
        from data_pipeline.sources.digits import Digits  # noqa: PLC0415
        from data_pipeline.spec import PairflipCorruption  # noqa: PLC0415

        began = time.monotonic()
        out = self.options.home / "demo" / "digits"
        corruption = PairflipCorruption(rate=NOISE_RATE)
        manifest = build(Digits(), out, BuildOptions(corruption=corruption, force=True)).manifest
        counts = ", ".join(f"{split.num_examples:,} {name}" for name, split in manifest.splits.items())
        self.timing.data_s = time.monotonic() - began
        self.say("✓", "data", f"{out}: {counts}", self.timing.data_s)
        return out / "manifest.json"

    def _watch(self, client: Client, jobs: Sequence[JobView]) -> list[JobView]:
        """Show all jobs at once until all have ended."""
        happenings: queue.Queue[tuple[str, Happening | Exception]] = queue.Queue()
        for job in jobs:
            threading.Thread(target=_follow, args=(client, job.id, happenings), daemon=True).start()
        ended: dict[str, JobView] = {}
        with JobScreen(jobs, self.console, epoch_lines=False) as screen:
            while len(ended) < len(jobs):
                job_id, happening = self._await(happenings)
                if isinstance(happening, Exception):
                    raise happening
                screen.show(job_id, happening)
                if isinstance(happening, JobView):
                    ended[job_id] = happening
        return [ended[job.id] for job in jobs]

    def _report(self, client: Client, jobs: Sequence[JobView]) -> None:
        for job in jobs:
            self.timing.jobs[job.name] = job_timing(list(client.events(job.id)))
        reports = [job_report(client, job) for job in jobs]
        self.report = DemoReport(jobs=reports, api_docs=f"{client.url}/docs", timing=self.timing)
        print_report(self.console, self.report)
        if self.options.keep:
            self.console.print("The service stays up until Ctrl-C.")
        else:
            self.console.print("The addresses answer again after: hush serve" + self._home_option())

    def _home_option(self) -> str:
        default = Path("~/.hush").expanduser()
        return "" if self.options.home == default else f" --home {self.options.home}"

    def _await(self, items: queue.Queue[_Item]) -> _Item:
        """The next item, or _StoppedError."""
        while not self.stop.wait(0):
            with contextlib.suppress(queue.Empty):
                return items.get(timeout=0.2)
        raise _StoppedError


def _follow(client: Client, job_id: str, happenings: queue.Queue[tuple[str, Happening | Exception]]) -> None:
    try:
        for happening in client.follow(job_id):
            happenings.put((job_id, happening))
    except Exception as error:  # told to the thread that waits for it
        happenings.put((job_id, error))


def _specs(manifest: Path) -> list[JobSpec]:
    """The demo's jobs. `examples` beside this file links to a clone's folder, and is a copy of it in a wheel."""
    folder = Path(__file__).parent / "examples"
    return [load_spec(folder / name, {"data.manifest": str(manifest)}) for name in SPECS]
