"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

SERVICE: Final = "Service"
JOBS: Final = "Jobs"
DATA: Final = "Data"
ADMINISTRATION: Final = "Administration"
"""Headings under which `hush --help` lists commands."""

Home = Annotated[
    Path | None,
    typer.Option(envvar="HUSH_HOME", help="Folder of all data of the service.", show_default="~/.hush"),
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="HUSH_URL",
        help="Address of the service; unset: the one that serves the home folder. HUSH_TOKEN holds the token for it.",
    ),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, or a name: then the newest job of that name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Watch until the job has ended; Ctrl-C only detaches.")]
Limit = Annotated[int, typer.Option(min=1, help="At most this many.")]
Now = Annotated[bool, typer.Option("--now", help="At once, without a last checkpoint.")]
NumCpus = Annotated[int | None, typer.Option(min=1, help="CPUs that jobs may use in all.", show_default="all")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the spec, e.g. method.lr=0.1; repeatable."),
]
