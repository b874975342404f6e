"""The client, and the commands on top of it, against a service that really listens."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json
from typer.testing import CliRunner

from service.cli import app
from service.client import (
    ConflictError,
    HushClient,
    InvalidRequestError,
    NotFoundError,
    UnexpectedAnswerError,
    UnreachableError,
)
from service.jobs.states import JobState
from service.schemas import EventView, JobView
from trainer.run_schema import Progress
from trainer.spec import JobSpec


@pytest.fixture
def client(service: RunningService) -> Iterator[HushClient]:
    with HushClient(service.url) as client:
        yield client


def spec(manifest: Path, name: str = "completes") -> JobSpec:
    return JobSpec.model_validate(spec_json(manifest, name=name))


def ended(client: HushClient, job_id: str) -> JobView:
    *_, last = client.follow(job_id)
    assert isinstance(last, JobView)
    return last


def test_a_job_from_submit_to_metrics(client: HushClient, manifest: Path) -> None:
    job = client.submit(spec(manifest))
    seen = list(client.follow(job.id))
    states = [e.state for e in seen if isinstance(e, EventView) and e.kind == "state"]
    assert states == [JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.SUCCEEDED]
    assert [e.epoch.epoch for e in seen if isinstance(e, EventView) and e.epoch] == [1, 2]
    assert any(isinstance(e, Progress) for e in seen)
    assert isinstance(seen[-1], JobView)
    assert seen[-1] == client.job(job.id)
    assert list(client.events(job.id)) == [e for e in seen if isinstance(e, EventView)]
    assert [series.name for series in client.metrics(job.id).series] == ["train/loss"]
    assert client.label_noise(job.id) == []
    with pytest.raises(NotFoundError, match="not there yet"):
        client.evaluation(job.id)
    with pytest.raises(NotFoundError):
        list(client.examples(job.id))


def test_pages_are_walked(client: HushClient, manifest: Path) -> None:
    ids = [client.submit(spec(manifest, f"waits-{n}")).id for n in range(5)]
    assert [job.id for job in client.jobs(page=2)] == ids[::-1]
    assert [job.id for job in client.jobs(name="waits-3")] == [ids[3]]


def test_a_key_makes_one_job(client: HushClient, manifest: Path) -> None:
    assert client.submit(spec(manifest), "k").id == client.submit(spec(manifest), "k").id
    with pytest.raises(ConflictError):
        client.submit(spec(manifest, "breaks"), "k")
    assert client.submit(spec(manifest)).id != client.submit(spec(manifest)).id


def test_refusals_carry_the_problem(client: HushClient, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no job"):
        client.job("0" * 26)
    with pytest.raises(InvalidRequestError, match=r"data\.manifest") as refused:
        client.submit(spec(tmp_path / "nothing" / "manifest.json"))
    assert refused.value.problem.status == 422
    with pytest.raises(NotFoundError):
        list(client.follow("0" * 26))


def test_following_goes_on_over_a_restart(tmp_path: Path, launcher: SubprocessLauncher, manifest: Path) -> None:
    """The client is cut off, the service comes back on another port: here by hand, as Last-Event-ID has it."""
    with running_service(tmp_path / "home", launcher, allowed_roots=(manifest.parent.parent,)) as first:
        client = HushClient(first.url)
        job = client.submit(spec(manifest))
        before = [e for e in client.follow(job.id) if isinstance(e, EventView)]
        client.close()
    with running_service(tmp_path / "home", launcher, allowed_roots=(manifest.parent.parent,)) as second:
        client = HushClient(second.url)
        after = [e for e in client.follow(job.id, after=before[2].id) if isinstance(e, EventView)]
        client.close()
    assert after == before[3:]


class CutsOff(http.server.BaseHTTPRequestHandler):
    """Streams one event a connection and then hangs up; the third connection ends the job."""

    asked_from: list[str | None] = []  # noqa: RUF012 - of the one server of one test
    job: str = ""

    def do_GET(self) -> None:
        self.asked_from.append(self.headers.get("Last-Event-ID"))
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
        self.wfile.write(f"event: state\nid: {number}\ndata: {event.model_dump_json()}\n\n".encode())
        if number == 3:
            self.wfile.write(f"event: end\ndata: {self.job}\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def test_a_stream_that_breaks_is_taken_up_where_it_broke(client: HushClient, manifest: Path) -> None:
    job = client.submit(spec(manifest))
    CutsOff.job = ended(client, job.id).model_dump_json()
    with http.server.HTTPServer(("127.0.0.1", 0), CutsOff) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with HushClient(f"http://127.0.0.1:{server.server_port}") as cut_off:
            seen = list(cut_off.follow("j"))
        server.shutdown()
        thread.join()
    assert [e.id for e in seen if isinstance(e, EventView)] == [1, 2, 3]
    assert CutsOff.asked_from == [None, "1", "2"]


def test_somebody_else_answers(tmp_path: Path) -> None:
    with HushClient("http://127.0.0.1:9") as nobody, pytest.raises(UnreachableError, match="hush serve"):
        nobody.job("0" * 26)
    handler = http.server.SimpleHTTPRequestHandler
    handler.log_message = lambda *_: None  # type: ignore[method-assign]  # be quiet
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        with HushClient(url) as other, pytest.raises(UnexpectedAnswerError, match="another program"):
            other.job("0" * 26)
        server.shutdown()
        thread.join()


class TestCommands:
    @pytest.fixture
    def hush(self, service: RunningService) -> Hush:
        return Hush(service.url)

    def test_submit_and_follow(self, hush: Hush, manifest: Path, tmp_path: Path) -> None:
        path = tmp_path / "job.yaml"
        path.write_text(json.dumps(spec_json(manifest)))
        code, out, err = hush("submit", str(path), "--follow")
        assert code == 0
        assert "completes  SUCCEEDED" in out
        assert "epoch 1" in err
        code, out, _ = hush("submit", str(path), "--follow", "--json", "--set", "name=breaks")
        assert code == 1, "the job failed"
        lines = [json.loads(line) for line in out.splitlines()]
        assert (lines[0]["event"], lines[-1]["event"]) == ("job", "end")
        assert lines[-1]["data"]["state"] == "FAILED"

    def test_looking_at_jobs(self, hush: Hush, client: HushClient, manifest: Path) -> None:
        assert "no jobs yet" in hush("jobs")[1]
        job = client.submit(spec(manifest))
        ended(client, job.id)
        assert job.id in hush("jobs")[1]
        assert [j["id"] for j in json.loads(hush("jobs", "--json", "--state", "succeeded")[1])] == [job.id]
        assert "SUCCEEDED" in hush("show", "completes")[1]
        assert json.loads(hush("show", job.id, "--json")[1])["evaluation"] is None
        assert len(json.loads(hush("events", "completes", "--json")[1])) == 6
        assert hush("events", "completes")[1].count("\n") == 6
        assert hush("cancel", job.id)[0] == 2, "it has ended"
        assert hush("show", "nothing")[2] == "hush: there is no job of name or id 'nothing'; `hush jobs` lists them\n"

    def test_cancel(self, hush: Hush, client: HushClient, manifest: Path) -> None:
        job = client.submit(spec(manifest, "waits"))
        assert hush("cancel", "waits")[0] == 0
        assert ended(client, job.id).state is JobState.CANCELLED
        assert hush("events", "waits", "--follow")[0] == 1


def test_ctrl_c_while_following_only_detaches(service: RunningService, client: HushClient, manifest: Path) -> None:
    job = client.submit(spec(manifest, "waits"))
    argv = [sys.executable, "-m", "service.cli", "events", job.id, "--follow", "--url", service.url]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as following:
        assert following.stderr is not None
        while "RUNNING" not in following.stderr.readline():
            pass
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=30)
    assert following.returncode == 130
    assert "waits goes on" in err
    assert f"hush cancel {job.id}" in err
    assert client.job(job.id).state is JobState.RUNNING
    client.cancel(job.id)
    assert ended(client, job.id).state is JobState.CANCELLED


class Hush:
    """The command line, pointed at a service."""

    def __init__(self, url: str) -> None:
        self._env = {"HUSH_URL": url, "COLUMNS": "160"}

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, list(argv), env=self._env)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr
