"""Heartbeats to a real HTTP server."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trainer.heartbeat import MAX_EPOCHS, HeartbeatSupervisor
from trainer.replica_process import MlflowRun
from trainer.run_schema import PROBLEM_JSON, EpochSummary, Heartbeat, Progress

PROGRESS = Progress(phase="training", epoch=1, num_epochs=2, step=3, num_steps=8)


class Service(ThreadingHTTPServer):
    """Answers heartbeats as it is told, and remembers them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.beats: list[Heartbeat] = []
        self.authorizations: set[str | None] = set()
        self.status, self.action, self.kind = 200, "continue", PROBLEM_JSON

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/beat"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.authorizations.add(self.headers["Authorization"])
        self.server.beats.append(Heartbeat.model_validate_json(body))
        reply = json.dumps({"action": self.server.action}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(reply)))
        self.send_header("Content-Type", f"{self.server.kind}; charset=utf-8")
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Say nothing."""


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def wait_until(happened: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_sends_progress_epochs_and_the_mlflow_run(service: Service) -> None:
    run = MlflowRun(run_id="r", experiment_id="e")
    with HeartbeatSupervisor(service.url, "secret", lambda: run, interval_s=0.02) as supervisor:
        supervisor.progress(PROGRESS)
        supervisor.epoch_finished(EpochSummary(epoch=1, metrics={"train/loss": 1.0}))
        wait_until(lambda: any(not beat.finished_epochs for beat in service.beats))
    assert service.authorizations == {"Bearer secret"}
    told = [beat for beat in service.beats if beat.finished_epochs]
    assert len(told) == 1, "an acknowledged epoch is not sent again"
    assert (told[0].progress, told[0].mlflow_run_id, told[0].mlflow_experiment_id) == (PROGRESS, "r", "e")
    assert supervisor.order == "continue"


def test_epochs_are_sent_until_they_are_acknowledged(service: Service) -> None:
    service.status = 503
    with HeartbeatSupervisor(service.url, "secret", interval_s=0.02) as supervisor:
        supervisor.progress(PROGRESS)
        supervisor.began((EpochSummary(epoch=1, metrics={}),))
        wait_until(lambda: len(service.beats) > 3)
        service.status = 200
        wait_until(lambda: not service.beats[-1].finished_epochs)
    assert supervisor.order == "continue"
    assert [beat.finished_epochs[0].epoch for beat in service.beats[:3]] == [1, 1, 1]


@pytest.mark.parametrize(
    ("status", "action", "order"),
    [(200, "stop", "stop"), (200, "abort", "abort"), (401, "?", "abort"), (404, "?", "abort"), (409, "?", "abort")],
)
def test_ends_when_told_or_fenced_off(service: Service, status: int, action: str, order: str) -> None:
    service.status, service.action = status, action
    with HeartbeatSupervisor(service.url, "secret", interval_s=0.02) as supervisor:
        supervisor.progress(PROGRESS)
        wait_until(lambda: supervisor.order != "continue")
    assert supervisor.order == order


def test_what_a_proxy_answers_ends_nothing(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    service.status, service.kind = 404, "text/html"
    with HeartbeatSupervisor(service.url, "secret", interval_s=0.02) as supervisor:
        supervisor.progress(PROGRESS)
        wait_until(lambda: len(service.beats) > 3)
        assert supervisor.order == "continue"
    assert sum("404" in record.message for record in caplog.records if record.levelname == "WARNING") == 1


def test_no_proxy_stands_between_it_and_the_service(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with HeartbeatSupervisor(service.url, "secret", interval_s=0.02) as supervisor:
        supervisor.progress(PROGRESS)
        wait_until(lambda: len(service.beats) > 0)


def test_stops_when_the_lease_is_lost() -> None:
    with HeartbeatSupervisor("http://127.0.0.1:9/", "secret", interval_s=0.02, lease_s=0.2) as supervisor:
        supervisor.progress(PROGRESS)
        wait_until(lambda: supervisor.order == "stop")


def test_the_lease_begins_with_the_first_heartbeat() -> None:
    with HeartbeatSupervisor("http://127.0.0.1:9/", "secret", interval_s=0.01, lease_s=10) as supervisor:
        supervisor._answered_s -= 60  # what comes before the first step has taken a minute
        began_s = supervisor._answered_s
        wait_until(lambda: supervisor._answered_s > began_s)
        supervisor.progress(PROGRESS)
        time.sleep(0.1)
        assert supervisor.order == "continue"


def test_absent_service_is_waited_for() -> None:
    with HeartbeatSupervisor("http://127.0.0.1:9/", "secret", interval_s=0.02) as supervisor:
        supervisor.progress(PROGRESS)
        time.sleep(0.3)
        assert supervisor.order == "continue"


def test_last_words_are_sent_at_the_end(service: Service) -> None:
    with HeartbeatSupervisor(service.url, "secret", interval_s=60) as supervisor:
        supervisor.progress(PROGRESS)
        supervisor.epoch_finished(EpochSummary(epoch=2, metrics={}))
    assert [beat.finished_epochs[0].epoch for beat in service.beats] == [2]


def test_thousands_of_epochs_are_told_in_several_heartbeats(service: Service) -> None:
    epochs = tuple(EpochSummary(epoch=epoch, metrics={}) for epoch in range(1, 2 * MAX_EPOCHS + 2))
    with HeartbeatSupervisor(service.url, "secret", interval_s=0.02) as supervisor:
        supervisor.began(epochs)
        supervisor.progress(PROGRESS)
        wait_until(lambda: sum(len(beat.finished_epochs) for beat in service.beats) == len(epochs))
    told = [summary for beat in service.beats for summary in beat.finished_epochs]
    assert tuple(told) == epochs
    assert max(len(beat.finished_epochs) for beat in service.beats) == MAX_EPOCHS
