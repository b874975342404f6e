"""What the service says of itself: metrics, logs, request ids and traces."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from marked_processes import wait_until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json
from sqlalchemy import Engine
from stored_jobs import beat, move, start_job
from webhook_receiver import status, webhook_receiver

from service.jobs.records import Submission
from service.jobs.states import JobState, Reason
from service.store.database import open_engine
from service.store.figures import read_figures
from service.store.store import Store
from service.telemetry.json_logs import JsonFormatter

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(service: RunningService) -> Samples:
    with httpx.Client(base_url=service.url, trust_env=False) as stranger:
        answer = stranger.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[(name, tuple(sorted(labels.items())))]


def test_metrics_of_a_job_that_ran(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest)
    service.wait_for(job["id"], "SUCCEEDED")
    assert service.client.get("/api/v1/jobs/0").status_code == 404
    samples = scrape(service)
    of_job = {"method": "GET", "route": "/api/v1/jobs/{job_id}"}
    assert value(samples, "hush_http_requests_total", method="POST", route="/api/v1/jobs", status="202") == 1
    assert value(samples, "hush_http_requests_total", **of_job, status="404") == 1
    assert value(samples, "hush_http_request_duration_seconds_count", **of_job) >= 2
    assert value(samples, "hush_jobs", state="SUCCEEDED") == 1
    assert value(samples, "hush_jobs", state="FAILED") == 0
    assert value(samples, "hush_attempts_total", reason="result_complete") == 1
    assert value(samples, "hush_heartbeats_total") >= 1
    assert value(samples, "hush_leader") == 1
    assert value(samples, "hush_reconcile_lag_seconds") >= 0
    assert value(samples, "hush_queue_jobs") == value(samples, "hush_queue_oldest_seconds") == 0
    assert value(samples, "hush_database_up") == 1
    assert value(samples, "process_resident_memory_bytes") > 0


def test_labels_are_few_whatever_is_asked_for(service: RunningService) -> None:
    for number in range(30):
        service.client.get(f"/api/v1/jobs/job-{number}")
        service.client.get(f"/nowhere/{number}")
        service.client.request(f"MADE{number}", "/healthz")
        service.client.get(f"/docs/{number}")
    with service.client_of(None) as stranger:
        stranger.get("/api/v1/jobs/secret")
    requests = [dict(labels) for name, labels in scrape(service) if name == "hush_http_requests_total"]
    assert {labels["route"] for labels in requests} <= {"/api/v1/jobs/{job_id}", "(none)", "/healthz", "/metrics"}
    assert {labels["method"] for labels in requests} == {"GET", "(other)"}


def test_openmetrics_where_it_is_asked_for(service: RunningService) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = service.client.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_a_database_that_is_away_costs_its_own_figures_only(service: RunningService) -> None:
    database = service.settings.home / "hush.db"
    engine = open_engine(f"sqlite:///{database}")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE webhook_deliveries RENAME TO elsewhere")
    try:
        samples = scrape(service)
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO webhook_deliveries")
        engine.dispose()
    assert value(samples, "hush_database_up") == 0
    assert "hush_jobs" not in {name for name, _ in samples}
    assert value(samples, "hush_leader") in {0, 1}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def test_figures_of_both_databases(engine: Engine) -> None:
    store = Store(engine)
    empty = read_figures(engine)
    assert (empty.jobs, empty.attempts, empty.oldest_waiting_since, empty.oldest_heartbeat_at) == ({}, {}, None, None)
    waiting = start_job(store)
    oldest, newer = start_job(store), start_job(store)
    beat(store, oldest, 1, 2)
    beat(store, newer, 1, 2)
    lost = start_job(store)
    move(store, lost, JobState.FAILED, Reason.WORKER_LOST)
    queued, _ = store.submit(Submission("others", waiting.spec), waiting.created_at)
    figures = read_figures(engine)
    assert figures.jobs == {"STARTING": 1, "RUNNING": 2, "FAILED": 1, "QUEUED": 1}
    assert figures.attempts == {"worker_lost": 1}
    assert figures.oldest_waiting_since == queued.state_since
    assert figures.oldest_heartbeat_at == store.attempts(oldest.id)[0].heartbeat_at


class JsonLog:
    """What this process logs, read back."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def of_request(self, request_id: str) -> list[dict[str, object]]:
        return [line for line in self.lines if line.get("request_id") == request_id]


@pytest.fixture
def log() -> Iterator[JsonLog]:
    log = JsonLog()
    handler = logging.StreamHandler(log.stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield log
    root.removeHandler(handler)
    root.setLevel(level)


def test_logs_bear_the_ids_of_request_and_job(service: RunningService, manifest: Path, log: JsonLog) -> None:
    headers = {"X-Request-ID": "monday-0001"}
    sent = service.client.post("/api/v1/jobs", json=spec_json(manifest), headers=headers)
    job = service.wait_for(sent.json()["id"], "SUCCEEDED")
    service.client.get("/healthz")
    service.client.get("/nowhere%0A%7B%22level%22:%20%22forged%22%7D")
    assert sent.headers["x-request-id"] == "monday-0001"
    (posted,) = [line for line in log.of_request("monday-0001") if line["logger"] == "service.access_log"]
    assert (posted["method"], posted["route"], posted["status"]) == ("POST", "/api/v1/jobs", 202)
    assert posted["level"] == "INFO"
    assert isinstance(posted["duration_ms"], float)
    moves = [line for line in log.lines if line.get("job_id") == job["id"]]
    assert {line["attempt"] for line in moves} == {1}
    assert any("STARTING" in str(line["message"]) for line in moves)
    ours = [line for line in log.lines if line["logger"] == "service.access_log"]
    assert not any(line["path"] == "/healthz" or "heartbeat" in str(line["path"]) for line in ours)
    assert "forged" not in {line["level"] for line in log.lines}
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$", str(line["time"])) for line in log.lines)


@pytest.mark.parametrize("given", ["", "short", "x" * 65, "a\"b'c d e f", "ünïcödé-ünïcödé".encode()])
def test_a_request_id_that_is_not_sane_is_replaced(service: RunningService, given: str | bytes) -> None:
    answers = [service.client.get("/healthz", headers={"X-Request-ID": given}) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", made) for made in ids)


def test_errors_and_refusals_bear_a_request_id_too(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, log: JsonLog
) -> None:
    with service.client_of(None) as stranger:
        assert "x-request-id" in stranger.get("/api/v1/jobs").headers
    store = service.server.app.state.context.store
    monkeypatch.setattr(store, "page", lambda *_: 1 / 0)
    failed = service.client.get("/api/v1/jobs", headers={"X-Request-ID": "it-breaks"})
    assert failed.status_code == 500
    assert failed.headers["x-request-id"] == "it-breaks"
    wait_until(
        lambda: any("ZeroDivisionError" in str(line.get("exception")) for line in log.of_request("it-breaks")),
        "the server logs the fault, which it does after its answer",
    )
    assert any(line.get("status") == 500 for line in log.of_request("it-breaks"))
    assert value(scrape(service), "hush_http_requests_total", method="GET", route="/api/v1/jobs", status="500") == 1


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A receiver of OTLP over HTTP."""
    heard: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            heard.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keeps silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_traces_reach_a_collector(tmp_path: Path, launcher: SubprocessLauncher, manifest: Path, log: JsonLog) -> None:
    with collector() as (endpoint, heard):
        settings = {"allowed_roots": (manifest.parent.parent,), "otel_endpoint": endpoint}
        with running_service(tmp_path / "home", launcher, **settings) as service:
            traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
            sent = service.client.post("/api/v1/jobs", json=spec_json(manifest), headers={"traceparent": traceparent})
            job = service.wait_for(sent.json()["id"], "SUCCEEDED")
            service.client.get("/healthz")
    spans = [
        span
        for request in heard
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]
    names = {span.name for span in spans}
    assert {"POST /api/v1/jobs", "GET /api/v1/jobs/{job_id}", "reconcile.look", "reconcile.launch"} <= names
    assert not any("healthz" in name or "internal" in name for name in names)
    (posted,) = [span for span in spans if span.name == "POST /api/v1/jobs"]
    assert posted.trace_id.hex() == "a" * 32
    (launched,) = [span for span in spans if span.name == "reconcile.launch"]
    assert {a.key: a.value.string_value or a.value.int_value for a in launched.attributes} == {
        "hush.job_id": job["id"],
        "hush.attempt": 1,
    }
    assert [line["trace_id"] for line in log.lines if line.get("status") == 202] == ["a" * 32]


def test_a_collector_that_is_away_stops_nothing(tmp_path: Path, launcher: SubprocessLauncher, manifest: Path) -> None:
    settings = {"allowed_roots": (manifest.parent.parent,), "otel_endpoint": "http://127.0.0.1:9"}
    with running_service(tmp_path / "home", launcher, **settings) as service:
        service.wait_for(service.submit(manifest)["id"], "SUCCEEDED")


def test_webhooks_and_followers_are_counted(tmp_path: Path, launcher: SubprocessLauncher, manifest: Path) -> None:
    settings = {"webhook_allow_http": True, "webhook_allowed_networks": "127.0.0.0/8"}
    with (
        webhook_receiver() as receiver,
        running_service(tmp_path / "home", launcher, allowed_roots=(manifest.parent.parent,), **settings) as service,
    ):
        receiver.answers.append(status(500))
        service.client.post("/api/v1/webhooks", json={"url": receiver.url, "states": ["QUEUED"]})
        job = service.submit(manifest, name="waits")
        url, stream = f"/api/v1/jobs/{job['id']}/events", {"Accept": "text/event-stream"}
        with service.client.stream("GET", url, headers=stream) as response:
            chunks = response.iter_bytes()  # a stream that nobody holds is closed
            next(chunks)
            service.wait(job["id"], lambda _: bool(service.server.app.state.context.sender.counts))
            samples = scrape(service)
    assert value(samples, "hush_event_followers") == 1
    assert value(samples, "hush_webhook_tries_total", outcome="failed") == 1
    assert value(samples, "hush_webhook_pending") == 1
