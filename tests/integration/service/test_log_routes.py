"""Logs over REST: listed, read by ranges, and followed from one attempt to the next."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse
from service_stand_ins import RunningService, SubprocessLauncher

FIRST = "attempt 1 begins: Grüße\n"
WHOLE = f"{FIRST}epoch 1 is done\nepoch 2 is done\n"


def log_path(service: RunningService, job_id: str, attempt: int = 1) -> Path:
    return service.settings.storage_dir / "jobs" / job_id / f"attempt-{attempt}" / "logs" / "rank_0000.log"


def follow(service: RunningService, url: str, **headers: str) -> list[ServerSentEvent]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with connect_sse(service.client, "GET", url, headers=sent) as source:
        assert source.response.status_code == 200, source.response.read()
        return list(source.iter_sse())


def text_of(messages: list[ServerSentEvent]) -> str:
    return "".join(json.loads(message.data)["text"] for message in messages if message.event == "log")


@pytest.fixture
def done(service: RunningService, manifest: Path) -> str:
    """Id of a job that has ended."""
    job = service.submit(manifest)
    service.wait_for(job["id"], "SUCCEEDED")
    return str(job["id"])


def test_a_log_is_listed_and_read(service: RunningService, done: str) -> None:
    job = service.client.get(f"/api/v1/jobs/{done}").json()
    [log] = service.client.get(job["links"]["logs"]).json()
    assert (log["attempt"], log["name"], log["size_bytes"]) == (1, "rank_0000", len(WHOLE.encode()))
    answer = service.client.get(log["links"]["self"])
    assert (answer.status_code, answer.text) == (200, WHOLE)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["accept-ranges"] == "bytes"
    assert text_of(follow(service, log["links"]["follow"])) == WHOLE


def test_a_job_that_printed_nothing_has_no_logs(
    service: RunningService, manifest: Path, launcher: SubprocessLauncher
) -> None:
    launcher.answers = False
    job = service.submit(manifest)
    assert service.client.get(job["links"]["logs"]).json() == []
    answer = service.client.get(f"{job['links']['logs']}/1/rank_0000")
    assert answer.status_code == 404
    assert "or not yet" in answer.json()["detail"]


def test_ranges(service: RunningService, done: str) -> None:
    url, content = f"/api/v1/jobs/{done}/logs/1/rank_0000", WHOLE.encode()

    def get(wanted: str) -> httpx.Response:
        return service.client.get(url, headers={"Range": wanted})

    part = get("bytes=5-20")
    assert (part.status_code, part.content) == (206, content[5:21])
    assert part.headers["content-range"] == f"bytes 5-20/{len(content)}"
    assert get("bytes=20-").content == content[20:]
    assert get("bytes=-4").content == content[-4:]
    assert (get("bytes=3-1").status_code, get("bytes=3-1").content) == (200, content)
    beyond = get(f"bytes={len(content)}-")
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(content)}")
    assert beyond.headers["content-type"] == "application/problem+json"


def test_last_lines(service: RunningService, done: str) -> None:
    url = f"/api/v1/jobs/{done}/logs/1/rank_0000"
    assert service.client.get(url, params={"tail_lines": 1}).text == "epoch 2 is done\n"
    assert service.client.get(url, params={"tail_lines": 100}).text == WHOLE
    assert service.client.get(url, params={"tail_lines": 0}).status_code == 422


@pytest.mark.parametrize(
    ("tail", "status"),
    [
        ("/1/rank_0001", 404),
        ("/2/rank_0000", 404),
        ("/1/rank_1", 422),
        ("/1/..%2f..%2fattempt.json", 404),
        ("/1/attempt.json", 422),
        ("/1/%00", 422),
        ("/1/rank_%D9%A0%D9%A0%D9%A0%D9%A0", 422),
        ("/0/driver", 422),
        ("/x/driver", 422),
        ("/99999999999999999999/driver", 422),
        ("?follow=true&rank=1", 422),
        ("?follow=true&name=rank_0007", 422),
        ("?follow=true&name=../driver", 422),
        ("?follow=true&attempt=2", 404),
        ("?follow=perhaps", 422),
    ],
)
def test_what_is_not_there(service: RunningService, done: str, tail: str, status: int) -> None:
    answer = service.client.get(f"/api/v1/jobs/{done}/logs{tail}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text


@pytest.mark.parametrize("last", ["x", "1", "-", "1-x", "1-99999999999999999999999", "99999-0"])
def test_a_place_that_is_none(service: RunningService, done: str, last: str) -> None:
    answer = service.client.get(f"/api/v1/jobs/{done}/logs?follow=true", headers={"Last-Event-ID": last})
    assert answer.status_code in {404, 422}


def test_a_stream_goes_on_at_the_very_byte(service: RunningService, done: str) -> None:
    url, accept = f"/api/v1/jobs/{done}/logs", "text/event-stream"
    messages = follow(service, url, Accept=accept)
    assert [message.event for message in messages] == ["log", "end"]
    assert messages[0].id == f"1-{len(WHOLE.encode())}"
    assert json.loads(messages[-1].data)["state"] == "SUCCEEDED"
    for cut in range(len(WHOLE.encode()) + 1):
        rest = follow(service, url, Accept=accept, Last_Event_ID=f"1-{cut}")
        assert text_of(rest) == WHOLE.encode()[cut:].decode("utf-8", "replace")
        assert rest[-1].event == "end"


def test_a_stream_tells_what_is_written_while_it_listens(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, name="waits")
    service.wait_for(job["id"], "RUNNING")
    url = f"/api/v1/jobs/{job['id']}/logs?follow=true"
    with connect_sse(service.client, "GET", url) as source:
        events = source.iter_sse()
        assert json.loads(next(events).data) == {"attempt": 1, "name": "rank_0000", "offset": 0, "text": FIRST}
        with log_path(service, job["id"]).open("ab") as log:
            log.write("é".encode()[:1])
            log.flush()
            log.write("é".encode()[1:] + b" without a newline")
        said = ""
        while said != "é without a newline":
            said += json.loads(next(events).data)["text"]
        service.client.post(f"/api/v1/jobs/{job['id']}/cancel")
        assert [event.event for event in events] == ["end"]


def test_a_stream_goes_on_to_the_next_attempt(
    service: RunningService, manifest: Path, launcher: SubprocessLauncher
) -> None:
    job = service.submit(manifest, name="waits-once")
    service.wait_for(job["id"], "RUNNING")
    messages: list[ServerSentEvent] = []
    url = f"/api/v1/jobs/{job['id']}/logs?follow=true"
    follower = threading.Thread(target=lambda: messages.extend(follow(service, url)))
    follower.start()
    service.wait(job["id"], lambda _: follower.is_alive())
    launcher.lose_everything()
    follower.join(60)
    assert not follower.is_alive()
    assert text_of(messages) == FIRST + WHOLE.replace("attempt 1", "attempt 2")
    assert json.loads(messages[0].data)["attempt"] == 1
    assert messages[-1].event == "end"
    [one, two] = service.client.get(job["links"]["logs"]).json()
    assert (one["attempt"], two["attempt"]) == (1, 2)
    assert text_of(follow(service, two["links"]["follow"])) == WHOLE.replace("attempt 1", "attempt 2")


def test_a_stream_ends_when_the_server_stops(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, name="waits")
    service.wait_for(job["id"], "RUNNING")
    with connect_sse(service.client, "GET", f"/api/v1/jobs/{job['id']}/logs?follow=true") as source:
        events = source.iter_sse()
        next(events)
        service.server.stop()
        assert "end" not in {event.event for event in events}  # so that a client comes back
