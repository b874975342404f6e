"""Launcher on a Ray cluster, over the dashboard's REST API. Ray itself is not imported: it would cost seconds at start.

Facts about that API that bite (Ray 2.60): a submission id that exists answers 500, not 409; an unknown one 404 in plain
text; after the head's restart every id is unknown. So a 500 is settled by asking for the id's status. And a head asks
for a token not only where it is told to, but wherever there is a `~/.ray/auth_token`, which `ray.init()` leaves behind.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from service.cluster.launcher import (
    AnswerUnusableError,
    DriverStatus,
    LauncherUnavailableError,
    LaunchRejectedError,
    Node,
    Phase,
)

TIMEOUT_S = 10.0
SUBMIT_TIMEOUT_S = 60.0
"""Ray answers a submission only when its job agent runs, which on a fresh head takes a while."""


class _JobInfo(BaseModel):
    """What GET /api/jobs/{id} says, as far as we read it."""

    status: Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
    message: str | None = None
    error_type: str | None = None
    driver_exit_code: int | None = None


class _NodeInfo(BaseModel):
    state: str
    resources_total: dict[str, float] | None = None


class _NodeRows(BaseModel):
    result: list[_NodeInfo]


class _NodeList(BaseModel):
    result: _NodeRows


class _NodesAnswer(BaseModel):
    """What GET /api/v0/nodes says, as far as we read it."""

    result: bool
    msg: str
    data: _NodeList | None = None


_Answer = TypeVar("_Answer", bound=BaseModel)

_OWN_ERRORS = frozenset(
    {"JOB_ENTRYPOINT_COMMAND_ERROR", "JOB_ENTRYPOINT_COMMAND_START_ERROR", "RUNTIME_ENV_SETUP_FAILURE"}
)
"""Failures of the driver itself. All others are the cluster's: the supervisor died, was not scheduled, …"""


OOM_WORDS = ("low on memory", "OutOfMemory", "(OOM)")
"""What Ray says where its memory monitor ended a process."""


def command(python: Path, run_dir: Path) -> list[str]:
    """The driver's command line: nothing but two paths of ours."""
    return [str(python), "-m", "trainer.ray_entry", str(run_dir)]


class RayLauncher:
    """Runs drivers by the Ray Jobs API."""

    def __init__(self, address: str, python: Path, token: SecretStr | None = None) -> None:
        """`address` is the dashboard's, e.g. `http://127.0.0.1:8265`; nothing is asked of it yet."""
        self._python = python
        headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
        self._client = httpx.Client(base_url=address, headers=headers, timeout=TIMEOUT_S, trust_env=False)

    def nodes(self) -> Sequence[Node]:
        """The cluster's living machines."""
        answer = _parsed(_NodesAnswer, self._call("GET", "/api/v0/nodes?detail=true&limit=10000"))
        if not answer.result or answer.data is None:
            raise AnswerUnusableError(answer.msg)
        totals = [n.resources_total or {} for n in answer.data.result.result if n.state == "ALIVE"]
        return [Node(total.get("CPU", 0), total.get("GPU", 0)) for total in totals]

    def submit(self, submission_id: str, run_dir: Path) -> None:
        """Start the driver of the attempt in `run_dir`, unless it was started before."""
        self.start(submission_id, command(self._python, run_dir))

    def start(self, submission_id: str, argv: Sequence[str]) -> None:
        """Run a command of ours as a driver, unless it was started before. Ray gives it to a shell, so it is quoted."""
        job: dict[str, str | int] = {
            "entrypoint": shlex.join(argv),
            "submission_id": submission_id,
            "entrypoint_num_cpus": 0,
        }
        response = self._call("POST", "/api/jobs/", json=job, timeout=SUBMIT_TIMEOUT_S)
        if response.is_success:
            return
        if response.status_code in {httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY}:
            raise LaunchRejectedError(f"Ray refused the attempt: {_shortened(response.text)}")
        if self.status(submission_id).phase is Phase.LOST:
            raise LauncherUnavailableError(f"Ray could not take the attempt now: {_shortened(response.text)}")

    def status(self, submission_id: str) -> DriverStatus:
        """What became of a driver."""
        response = self._call("GET", f"/api/jobs/{submission_id}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return DriverStatus(Phase.LOST, "Ray does not know the attempt: its head was restarted.")
        info = _parsed(_JobInfo, response)
        if info.status == "FAILED" and _was_killed(info):
            return DriverStatus(Phase.KILLED, info.message, is_out_of_memory=_was_out_of_memory(info))
        return DriverStatus(Phase(info.status), info.message)

    def stop(self, submission_id: str) -> None:
        """Ask a driver to end (SIGTERM), and kill it three seconds later, or RAY_JOB_STOP_WAIT_TIME_S of the head."""
        response = self._call("POST", f"/api/jobs/{submission_id}/stop")
        if response.status_code != httpx.codes.NOT_FOUND and not response.is_success:
            raise AnswerUnusableError(f"Ray could not stop the attempt now: {_shortened(response.text)}")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _call(
        self, method: str, path: str, *, json: dict[str, str | int] | None = None, timeout: float = TIMEOUT_S
    ) -> httpx.Response:
        try:
            return self._client.request(method, path, json=json, timeout=timeout)
        except httpx.HTTPError as error:
            raise LauncherUnavailableError(f"{type(error).__name__}: {error}") from error


def _parsed(kind: type[_Answer], response: httpx.Response) -> _Answer:
    try:
        return kind.model_validate_json(response.raise_for_status().content)
    except (httpx.HTTPStatusError, ValidationError) as error:
        raise AnswerUnusableError(f"Ray answered {response.status_code}: {_shortened(response.text)}") from error


def _was_killed(info: _JobInfo) -> bool:
    """Whether the cluster or a signal ended the driver, rather than an error of its own (a shell: 128 + signal).

    A driver of Ray that gets SIGTERM, as when its machine shuts down, ends with that signal's number.
    """
    if info.error_type is not None and info.error_type not in _OWN_ERRORS:
        return True
    code = info.driver_exit_code
    return code is not None and (code < 0 or code > 128 or code == signal.SIGTERM)


def _was_out_of_memory(info: _JobInfo) -> bool:
    """Whether it was Ray's memory monitor that ended the driver, or what watches it."""
    return any(words in (info.message or "") for words in OOM_WORDS)


def _shortened(text: str) -> str:
    """The last line of what Ray says, which names the error where it is a traceback."""
    lines = text.strip().splitlines()
    return lines[-1][:500] if lines else "nothing"
