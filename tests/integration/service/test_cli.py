"""The commands against a service that really listens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Hush
from service_stand_ins import RunningService, spec_json

from service.client import Client
from service.jobs.states import JobState
from service.schemas import JobView
from trainer.spec import JobSpec


@pytest.fixture
def client(service: RunningService) -> Iterator[Client]:
    with Client(service.url, service.token) as client:
        yield client


def spec(manifest: Path, name: str = "completes") -> JobSpec:
    return JobSpec.model_validate(spec_json(manifest, name=name))


def ended(client: Client, job_id: str) -> JobView:
    *_, last = client.follow(job_id)
    assert isinstance(last, JobView)
    return last


class TestCommands:
    @pytest.fixture
    def hush(self, service: RunningService) -> Hush:
        return Hush(service.url, service.token)

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

    def test_looking_at_jobs(self, hush: Hush, client: Client, manifest: Path) -> None:
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

    def test_cancel(self, hush: Hush, client: Client, manifest: Path) -> None:
        job = client.submit(spec(manifest, "waits"))
        assert hush("cancel", "waits")[0] == 0
        assert ended(client, job.id).state is JobState.CANCELLED
        assert hush("events", "waits", "--follow")[0] == 1

    def test_cancel_now(self, hush: Hush, client: Client, manifest: Path) -> None:
        job = client.submit(spec(manifest, "deaf"))
        assert json.loads(hush("cancel", "deaf", "--now", "--json")[1])["cancel_mode"] in {"now", "graceful"}
        assert ended(client, job.id).state is JobState.CANCELLED

    def test_retry(self, hush: Hush, client: Client, manifest: Path) -> None:
        job = client.submit(spec(manifest, "breaks"))
        assert hush("retry", job.id)[0] == 2, "it has not ended"
        ended(client, job.id)
        assert json.loads(hush("retry", "breaks", "--json")[1])["retry_of"] == job.id
        assert hush("retry", job.id, "--follow")[0] == 1, "it fails again"

    def test_why_attempts_ended(self, hush: Hush, client: Client, manifest: Path) -> None:
        job = client.submit(spec(manifest, "dies-once"))
        assert ended(client, job.id).state is JobState.SUCCEEDED
        assert "attempt 1 ended: driver lost" in hush("show", job.id)[1]
        assert [attempt["number"] for attempt in json.loads(hush("show", job.id, "--json")[1])["attempts"]] == [1, 2]

    def test_jobs_of_a_method(self, hush: Hush, client: Client, manifest: Path) -> None:
        job = client.submit(spec(manifest, "waits"))
        assert [found["id"] for found in json.loads(hush("jobs", "--method", "ivon", "--json")[1])] == [job.id]
        assert json.loads(hush("jobs", "--method", "sam", "--json")[1]) == []

    def test_without_a_token(self, service: RunningService) -> None:
        for token in (None, "hush_" + "x" * 43):
            code, out, err = Hush(service.url, token)("jobs")
            assert (code, out) == (2, "")
            assert "HUSH_TOKEN must hold a token" in err
        assert err.count("\n") == 2


def test_ctrl_c_while_following_only_detaches(service: RunningService, client: Client, manifest: Path) -> None:
    job = client.submit(spec(manifest, "waits"))
    argv = [sys.executable, "-m", "service.cli", "events", job.id, "--follow", "--url", service.url]
    env = os.environ | {"HUSH_TOKEN": service.token}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=env) as following:
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
