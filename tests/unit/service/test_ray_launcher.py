"""What the launcher makes of answers that a healthy Ray does not give; the others stand in the contract tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from service.cluster.launcher import LauncherUnavailableError, LaunchRejectedError, Phase
from service.cluster.ray_launcher import RayLauncher, command


@contextmanager
def dashboard(answers: dict[str, tuple[int, str]]) -> Iterator[RayLauncher]:
    """An HTTP server that gives recorded answers, as "METHOD path" -> (status, body)."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, body = answers[f"{self.command} {self.path.partition('?')[0]}"]
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (http.server names it)
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    launcher = RayLauncher(f"http://127.0.0.1:{server.server_port}", Path("/python"))
    try:
        yield launcher
    finally:
        launcher.close()
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_command_is_fixed_and_quoted() -> None:
    folder = Path("/data/a b;$(touch x)'/attempt-1")
    assert command(Path("/my python"), folder) == ["/my python", "-m", "trainer.ray_entry", str(folder)]


@pytest.mark.parametrize(
    ("info", "phase"),
    [
        ({"status": "FAILED", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "driver_exit_code": 1}, Phase.FAILED),
        ({"status": "FAILED", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "driver_exit_code": -9}, Phase.KILLED),
        ({"status": "FAILED", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "driver_exit_code": 137}, Phase.KILLED),
        ({"status": "FAILED", "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "driver_exit_code": 15}, Phase.KILLED),
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED"}, Phase.KILLED),
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"}, Phase.KILLED),
        ({"status": "FAILED", "error_type": "RUNTIME_ENV_SETUP_FAILURE"}, Phase.FAILED),
        ({"status": "STOPPED"}, Phase.STOPPED),
        ({"status": "PENDING"}, Phase.PENDING),
    ],
)
def test_killed_or_failed(info: dict[str, object], phase: Phase) -> None:
    with dashboard({"GET /api/jobs/x": (200, json.dumps(info))}) as launcher:
        assert launcher.status("x").phase is phase


def test_a_500_for_an_id_that_exists_is_adopted() -> None:
    answers = {"POST /api/jobs/": (500, "already exists"), "GET /api/jobs/x": (200, '{"status": "RUNNING"}')}
    with dashboard(answers) as launcher:
        launcher.submit("x", Path("/run"))


def test_a_500_for_another_reason_is_for_later() -> None:
    answers = {
        "POST /api/jobs/": (500, "Traceback\nNo available agent"),
        "GET /api/jobs/x": (404, "Job x does not exist"),
    }
    with dashboard(answers) as launcher, pytest.raises(LauncherUnavailableError, match="No available agent"):
        launcher.submit("x", Path("/run"))


def test_a_400_is_for_good() -> None:
    answers = {"POST /api/jobs/": (400, "bad\nValueError: no")}
    with dashboard(answers) as launcher, pytest.raises(LaunchRejectedError, match="ValueError: no"):
        launcher.submit("x", Path("/run"))


@pytest.mark.parametrize("answer", [(502, "<html>"), (200, "<html>"), (200, '{"status": "NEW"}')])
def test_answers_that_are_none(answer: tuple[int, str]) -> None:
    with dashboard({"GET /api/jobs/x": answer, "GET /api/v0/nodes": answer}) as launcher:
        with pytest.raises(LauncherUnavailableError):
            launcher.status("x")
        with pytest.raises(LauncherUnavailableError):
            launcher.nodes()
