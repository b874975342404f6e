"""What `hush serve` shows: what is starting and for how long, then where everything is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from service.embedded.serve import Part


class ServeScreen:
    """Shows the parts while they start, in place on a terminal and in plain lines elsewhere. A context manager."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._console = Console(highlight=False, stderr=True)
        self._live: Live | None = None
        self._said: set[str] = set()
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_live()

    def show(self, stage: Literal["serving", "stopping"], parts: Sequence[Part]) -> None:
        """How the parts stand now."""
        if stage == "stopping":
            self._end_live()
            self._console.print("stopping; a second Ctrl-C hurries")
            return
        all_ready = all(part.state == "ready" for part in parts)
        if "addresses" in self._said:
            self._tell_restarts(parts)
        elif all_ready:
            self._end_live()
            self._said.add("addresses")
            self._print_addresses(parts)
        elif self._console.is_terminal:
            self._show_live(parts)
        else:
            self._tell_once(parts)

    def _show_live(self, parts: Sequence[Part]) -> None:
        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=10)
            self._live.start()
        self._live.update(starting_view(parts))

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _tell_once(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if part.ready_after_s is not None and part.name not in self._said:
                self._said.add(part.name)
                self._console.print(f"{part.name} ready after {part.ready_after_s:.1f} s", soft_wrap=True)

    def _tell_restarts(self, parts: Sequence[Part]) -> None:
        for part in parts:
            said = f"{part.name} {part.num_restarts}"
            if part.num_restarts and said not in self._said:
                self._said.add(said)
                self._console.print(f"{part.name} ended unexpectedly and is started again; see {self._home}/logs")

    def _print_addresses(self, parts: Sequence[Part]) -> None:
        urls = {part.name: part.url for part in parts}
        seconds = time.monotonic() - self._began
        self._console.print(Text.assemble(("Hush is ready", "bold green"), (f"  after {seconds:.1f} s", "dim")))
        grid = Table.grid(padding=(0, 2))
        grid.add_row("  API", urls["API"], Text("docs at /docs", style="dim"))
        grid.add_row("  MLflow", urls["MLflow"], Text("metrics, histograms, artifacts", style="dim"))
        grid.add_row("  Ray", urls["Ray"], Text("cluster dashboard", style="dim"))
        grid.add_row("  home", str(self._home), Text("all data, and logs/", style="dim"))
        self._console.print(grid, soft_wrap=True)
        self._console.print(Text("Ctrl-C stops it. In another terminal: hush submit SPEC.yaml --follow", style="dim"))


def starting_view(parts: Sequence[Part]) -> RenderableType:
    """A line a part: its name, and how long it has been starting or took to start."""
    rows: list[RenderableType] = []
    for part in parts:
        if part.ready_after_s is not None:
            rows.append(Text.assemble(("✓ ", "green"), f"{part.name:<8}", (f"{part.ready_after_s:.1f} s", "dim")))
        else:
            since = time.monotonic() - part.since
            rows.append(_spinner(Text.assemble(f"{part.name:<8}", (f"starting, {since:.0f} s", "dim"))))
    return Group(*rows)


def _spinner(text: Text) -> Spinner:
    spinner = Spinner("dots", text=text, style="cyan")
    spinner.start_time = 0.0  # keeps turning though it is made anew at each look
    return spinner
