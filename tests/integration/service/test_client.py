"""The client, sync and async alike, against a service that really listens, and against one that fails."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from awaited_client import NOT_PATIENT, AnyClient, Connect
from faulty_proxy import Fault, FaultyProxy
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json

from service.client import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    RateLimitedError,
    Retry,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
)
from service.jobs.states import JobState
from service.schemas import EventView, JobView
from trainer.run_schema import Progress
from trainer.spec import JobSpec


def spec(manifest: Path, name: str = "completes") -> JobSpec:
    return JobSpec.model_validate(spec_json(manifest, name=name))


def ended(client: AnyClient, job_id: str) -> JobView:
    *_, last = client.follow(job_id)
    assert isinstance(last, JobView)
    return last


def test_a_job_from_submit_to_metrics(client: AnyClient, manifest: Path) -> None:
    job = client.submit(spec(manifest))
    seen = list(client.follow(job.id))
    states = [e.state for e in seen if isinstance(e, EventView) and e.kind == "state"]
    assert states == [JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.SUCCEEDED]
    assert [e.epoch.epoch for e in seen if isinstance(e, EventView) and e.epoch] == [1, 2]
    assert any(isinstance(e, Progress) for e in seen)
    assert isinstance(seen[-1], JobView)
    assert seen[-1] == client.job(job.id)
    assert list(client.events(job.id)) == [e for e in seen if isinstance(e, EventView)]
    assert "train/loss" in {series.name for series in client.metrics(job.id).series}
    assert client.label_noise(job.id) == []
    with pytest.raises(NotFoundError, match="not there yet"):
        client.evaluation(job.id)
    with pytest.raises(NotFoundError):
        list(client.examples(job.id))


def test_pages_are_walked(client: AnyClient, manifest: Path) -> None:
    ids = [client.submit(spec(manifest, f"waits-{n}")).id for n in range(5)]
    assert [job.id for job in client.jobs(page=2)] == ids[::-1]
    assert [job.id for job in client.jobs(name="waits-3")] == [ids[3]]
    assert [job.id for job in client.jobs(method="ivon", page=5)] == ids[::-1]
    assert list(client.jobs(method="sam")) == []
    assert next(client.jobs(page=1)).id == ids[-1], "a walk may be left"


def test_a_key_makes_one_job(client: AnyClient, manifest: Path) -> None:
    assert client.submit(spec(manifest), "k").id == client.submit(spec(manifest), "k").id
    with pytest.raises(ConflictError):
        client.submit(spec(manifest, "breaks"), "k")
    assert client.submit(spec(manifest)).id != client.submit(spec(manifest)).id


def test_refusals_carry_the_problem(client: AnyClient, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no job"):
        client.job("0" * 26)
    with pytest.raises(NotFoundError):
        client.job("../metrics?x=#")
    with pytest.raises(InvalidRequestError, match=r"data\.manifest") as refused:
        client.submit(spec(tmp_path / "nothing" / "manifest.json"))
    assert refused.value.problem.status == 422
    with pytest.raises(NotFoundError):
        list(client.follow("0" * 26))


def test_a_job_is_stopped_at_once(client: AnyClient, manifest: Path) -> None:
    job = client.submit(spec(manifest, "deaf"))
    running = (e for e in client.follow(job.id) if isinstance(e, EventView) and e.state is JobState.RUNNING)
    assert next(running)
    assert client.cancel(job.id).cancel_mode == "graceful"
    assert client.cancel(job.id, "now").cancel_mode == "now"
    assert ended(client, job.id).state is JobState.CANCELLED
    [attempt] = client.attempts(job.id)
    assert (attempt.number, attempt.ended_at is not None) == (1, True)


def test_a_job_is_retried_once_for_each_key(client: AnyClient, manifest: Path) -> None:
    job = client.submit(spec(manifest, "breaks"))
    with pytest.raises(ConflictError):
        client.retry(client.submit(spec(manifest, "waits")).id)
    assert ended(client, job.id).state is JobState.FAILED
    retried = client.retry(job.id, "k")
    assert (retried.retry_of, retried.spec) == (job.id, job.spec)
    assert client.retry(job.id, "k").id == retried.id
    assert client.retry(job.id).id != retried.id


FAILING: list[Fault] = ["503", "no answer", "429", "502", "answer lost", "cut", "none"]


@pytest.fixture
def faulty(service: RunningService) -> Iterator[FaultyProxy]:
    """Before the service; each request fails in each way before it comes through."""
    proxy = FaultyProxy(target_of(service), FAILING, methods=("GET", "POST"))
    yield proxy
    proxy.close()


@pytest.fixture
def through(service: RunningService, faulty: FaultyProxy, connect: Connect) -> Connect:
    """Makes clients of the service behind the faulty proxy."""
    return partial(connect, f"http://{faulty.address}", service.token)


def test_what_may_be_repeated_gets_through(
    faulty: FaultyProxy, client: AnyClient, through: Connect, manifest: Path
) -> None:
    """One submit, of which the service sees three."""
    failing = through()
    job = failing.submit(spec(manifest, "waits"))
    assert len(faulty.requests) == len(FAILING)
    assert [j.id for j in failing.jobs()] == [job.id], "it is one job"
    assert failing.job(job.id).id == job.id
    failing.cancel(job.id)
    assert ended(client, job.id).state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("429", RateLimitedError),
        ("503", UnavailableError),
        ("502", UnreachableError),
        ("no answer", UnreachableError),
        ("500", UnexpectedAnswerError),
    ],
)
def test_patience_ends(
    faulty: FaultyProxy, through: Connect, manifest: Path, fault: Fault, error: type[Exception]
) -> None:
    faulty.set_faults([fault])
    with pytest.raises(error):
        through(retry=NOT_PATIENT).submit(spec(manifest))
    assert faulty.counts[fault] == 1
    with pytest.raises(error):
        through(retry=Retry(max_s=0.3, first_wait_s=0.1)).submit(spec(manifest))
    assert (faulty.counts[fault] > 2) is (fault != "500"), "a fault of the service is not asked for again"


def test_a_stream_is_taken_up_over_every_fault(
    faulty: FaultyProxy, client: AnyClient, through: Connect, manifest: Path
) -> None:
    job = client.submit(spec(manifest))
    events = [e for e in client.follow(job.id) if isinstance(e, EventView)]
    seen = list(through().follow(job.id))
    assert [e for e in seen if isinstance(e, EventView)] == events
    assert seen[-1] == client.job(job.id)
    assert faulty.counts["cut"] == 1


def test_following_goes_on_over_a_restart(
    tmp_path: Path, launcher: SubprocessLauncher, manifest: Path, connect: Connect
) -> None:
    """The service stops while somebody follows, and comes back at the same address."""
    roots = (manifest.parent.parent,)
    running = threading.Event()
    seen: list[object] = []

    def follow(client: AnyClient, job_id: str) -> None:
        for happening in client.follow(job_id):
            seen.append(happening)
            if isinstance(happening, EventView) and happening.state is JobState.RUNNING:
                running.set()

    with running_service(tmp_path / "home", launcher, allowed_roots=roots) as first:
        client = connect(first.url, first.token)
        job = client.submit(spec(manifest, "waits"))
        following = threading.Thread(target=follow, args=(connect(first.url, first.token), job.id))
        following.start()
        assert running.wait(30)
    port = int(first.url.rpartition(":")[2])
    with running_service(tmp_path / "home", launcher, port=port, allowed_roots=roots):
        client.cancel(job.id)
        following.join(30)
        assert not following.is_alive()
        assert [e for e in seen if isinstance(e, EventView)] == list(client.events(job.id)), "each once"
        assert seen[-1] == client.job(job.id)


class CutsOff(http.server.BaseHTTPRequestHandler):
    """Streams one event a connection and then hangs up; the third connection ends the job."""

    asked_from: list[str | None] = []  # noqa: RUF012 - of the one server of one test
    tokens: list[str | None] = []  # noqa: RUF012
    job: str = ""

    def do_GET(self) -> None:
        self.asked_from.append(self.headers.get("Last-Event-ID"))
        self.tokens.append(self.headers.get("Authorization"))
        number = len(self.asked_from)
        event = EventView.model_validate(
            {
                "id": number,
                "job_id": "j",
                "attempt": 1,
                "time": "2026-01-01T00:00:00Z",
                "kind": "state",
                "state": "RUNNING",
            }
        )
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(f"event: state\nid: {number}\ndata: {event.model_dump_json()}\n\n: comment\n\n".encode())
        if number == 3:
            self.wfile.write(f"event: end\ndata: {self.job}\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def test_a_stream_that_breaks_is_taken_up_where_it_broke(client: AnyClient, connect: Connect, manifest: Path) -> None:
    job = client.submit(spec(manifest))
    CutsOff.job = ended(client, job.id).model_dump_json()
    CutsOff.asked_from, CutsOff.tokens = [], []
    with serving(CutsOff) as url:
        seen = list(connect(url, "the-token\n").follow("j"))
    assert [e.id for e in seen if isinstance(e, EventView)] == [1, 2, 3]
    assert CutsOff.asked_from == [None, "1", "2"]
    assert CutsOff.tokens == ["Bearer the-token"] * 3


def test_somebody_else_answers(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="hush serve"):
        connect("http://127.0.0.1:9", retry=NOT_PATIENT).job("0" * 26)
    handler = http.server.SimpleHTTPRequestHandler
    handler.log_message = lambda *_: None  # type: ignore[method-assign]  # be quiet
    with serving(handler) as url:
        other = connect(url)
        for ask in (other.job, lambda job_id: next(other.follow(job_id))):
            with pytest.raises(UnexpectedAnswerError, match="another program"):
                ask("0" * 26)


class SaysNothing(http.server.BaseHTTPRequestHandler):
    """Answers 200 to everything: JSON that is no answer of the service."""

    media_type = "application/json"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", self.media_type)
        self.end_headers()
        self.wfile.write(b"event: state\ndata: {}\n\n" if "stream" in self.media_type else b"{}")

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.mark.parametrize("media_type", ["application/json", "text/event-stream"])
def test_an_answer_that_is_none(connect: Connect, monkeypatch: pytest.MonkeyPatch, media_type: str) -> None:
    monkeypatch.setattr(SaysNothing, "media_type", media_type)
    with serving(SaysNothing) as url:
        client = connect(url)
        for ask in (client.job, lambda job_id: next(client.follow(job_id)), lambda _: next(client.jobs())):
            with pytest.raises(UnexpectedAnswerError, match="another version"):
                ask("0" * 26)


@pytest.mark.parametrize("url", ["localhost:8900", "127.0.0.1", "ftp://host", "http://", "http://host:port", ""])
def test_what_is_no_address(connect: Connect, url: str) -> None:
    with pytest.raises(ValueError, match=r"url = '.*': must be"):
        connect(url)


@pytest.mark.parametrize("token", ["two words", "schlüssel", "a\nb", "\x7f"])
def test_what_is_no_token_is_not_shown(connect: Connect, token: str) -> None:
    with pytest.raises(ValueError, match="token: must be") as refused:
        connect("http://127.0.0.1:9", token)
    assert token not in str(refused.value)


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server of its own."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def target_of(service: RunningService) -> tuple[str, int]:
    url = httpx.URL(service.url)
    assert url.port is not None
    return url.host, url.port
