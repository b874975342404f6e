"""Submitting, listing and following jobs over REST."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse
from marked_processes import wait_until
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json

from service.cluster.launcher import Node
from trainer.spec import JobSpec


def test_answer_to_a_submission(service: RunningService, manifest: Path) -> None:
    answer = service.client.post("/api/v1/jobs", json=spec_json(manifest, seed=7))
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}" == job["links"]["self"]
    assert service.client.get(answer.headers["location"]).json()["id"] == job["id"]
    assert JobSpec.model_validate(job["spec"]).seed == 7
    assert job["method"] == "ivon"
    assert service.client.get(job["links"]["events"]).status_code == 200


def test_one_idempotency_key_makes_one_job(service: RunningService, manifest: Path) -> None:
    def post(**changes: Any) -> httpx.Response:
        headers = {"Idempotency-Key": "monday"}
        return service.client.post("/api/v1/jobs", json=spec_json(manifest, **changes), headers=headers)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(), range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert len(service.client.get("/api/v1/jobs").json()["items"]) == 1
    conflict = post(seed=1)
    assert conflict.status_code == 409
    assert conflict.json()["detail"].endswith(f"{answers[0].json()['id']}.")


def test_a_repeated_submission_is_answered_though_its_manifest_is_gone(
    service: RunningService, manifest: Path, tmp_path: Path, launcher: SubprocessLauncher
) -> None:
    launcher.answers = False
    copy = manifest.parent / "copy.json"
    copy.write_bytes(manifest.read_bytes())
    headers = {"Idempotency-Key": "once"}
    first = service.client.post("/api/v1/jobs", json=spec_json(copy), headers=headers)
    copy.unlink()
    second = service.client.post("/api/v1/jobs", json=spec_json(copy), headers=headers)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]


def test_pages_and_filters(service: RunningService, manifest: Path, launcher: SubprocessLauncher) -> None:
    launcher.answers = False
    ids = [
        service.submit(manifest, name=f"job-{n % 2}", method={"kind": ("ivon", "sgd")[n % 2]})["id"] for n in range(5)
    ]
    service.client.post(f"/api/v1/jobs/{ids[0]}/cancel")

    def walk(**params: Any) -> list[str]:
        found: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = service.client.get("/api/v1/jobs", params={"limit": 2, **params, **cursor}).json()
            assert len(page["items"]) <= 2
            found += [job["id"] for job in page["items"]]
            if page["next_cursor"] is None:
                return found
            cursor = {"cursor": page["next_cursor"]}

    newest_first = sorted(ids, reverse=True)
    assert walk() == newest_first
    assert set(walk(name="job-1")) == {ids[1], ids[3]}
    assert set(walk(method="ivon")) == {ids[0], ids[2], ids[4]}
    assert walk(state="CANCELLED") == [ids[0]]
    assert walk(name="nobody") == []


def test_events_page_by_page(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest)
    service.wait_for(job["id"], "SUCCEEDED")
    url = f"/api/v1/jobs/{job['id']}/events"
    everything = service.client.get(url).json()["items"]
    after, found = 0, []
    while (page := service.client.get(url, params={"after": after, "limit": 2}).json())["next_after"] is not None:
        found += page["items"]
        after = page["next_after"]
    assert found == everything
    assert page["items"] == []


def follow(service: RunningService, job_id: str, headers: dict[str, str] | None = None) -> list[ServerSentEvent]:
    headers = {"Accept": "text/event-stream", **(headers or {})}
    with connect_sse(service.client, "GET", f"/api/v1/jobs/{job_id}/events", headers=headers) as source:
        return list(source.iter_sse())


def test_a_stream_tells_everything_and_ends(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest)
    messages = follow(service, job["id"])
    stored = service.client.get(f"/api/v1/jobs/{job['id']}/events").json()["items"]
    told = [message for message in messages if message.event in {"state", "epoch"}]
    assert [json.loads(message.data) for message in told] == stored
    assert [message.id for message in told] == [str(event["id"]) for event in stored]
    assert messages[-1].event == "end"
    assert json.loads(messages[-1].data)["state"] == "SUCCEEDED"
    progress = [json.loads(message.data) for message in messages if message.event == "progress"]
    assert progress[-1]["step"] == 20


def test_a_stream_continues_where_it_was_cut(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest)
    service.wait_for(job["id"], "SUCCEEDED")
    everything = [m for m in follow(service, job["id"]) if m.event in {"state", "epoch"}]
    rest = [m for m in follow(service, job["id"], {"Last-Event-ID": everything[2].id}) if m.event in {"state", "epoch"}]
    assert [m.id for m in rest] == [m.id for m in everything[3:]]
    assert [m.event for m in follow(service, job["id"], {"Last-Event-ID": everything[-1].id})][-1] == "end"


def test_a_stream_ends_when_the_server_stops(service: RunningService, manifest: Path) -> None:
    job = service.submit(manifest, name="waits")
    service.wait_for(job["id"], "RUNNING")
    messages: list[ServerSentEvent] = []
    follower = threading.Thread(target=lambda: messages.extend(follow(service, job["id"])))
    follower.start()
    service.wait(job["id"], lambda _: follower.is_alive())
    service.server.stop()
    follower.join(10)
    assert not follower.is_alive()
    assert "end" not in {message.event for message in messages}  # so that a client comes back


def test_the_link_to_mlflow(tmp_path: Path, launcher: SubprocessLauncher, manifest: Path) -> None:
    settings = {"allowed_roots": (manifest.parent.parent,), "mlflow_uri": "http://127.0.0.1:9/"}
    with running_service(tmp_path / "home", launcher, **settings) as service:
        job = service.submit(manifest)
        assert job["links"]["mlflow"] is None
        done = service.wait_for(job["id"], "SUCCEEDED")
        assert done["links"]["mlflow"] == "http://127.0.0.1:9/#/experiments/e1/runs/r1"
        ready = service.client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["mlflow"]) == (503, "unavailable (ConnectError)")


def test_front_door_health_and_documents(service: RunningService) -> None:
    assert service.client.get("/").headers["location"] == "/docs"
    page = service.client.get("/docs")
    assert page.status_code == 200
    assert "//" not in "".join(re.findall(r'(?:src|href)="([^"]*)"', page.text)), "the page must need no other host"
    for address in re.findall(r'(?:src|href)="([^"]*)"', page.text):
        assert service.client.get(address).status_code == 200, address
    assert service.client.get("/healthz").json() == {"status": "ok", "checks": {}}
    ready = service.client.get("/readyz").json()
    assert ready == {"status": "ok", "checks": {"database": "ok", "reconciler": "ok", "ray": "ok"}}


class HangingLauncher(SubprocessLauncher):
    """Of a cluster that accepts connections and does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.num_asked = 0

    def nodes(self) -> Sequence[Node]:
        self.num_asked += 1
        assert self.go.wait(60)
        return super().nodes()


def test_strangers_who_ask_for_readiness_keep_nobody_waiting(tmp_path: Path) -> None:
    launcher, num_strangers = HangingLauncher(), 60  # more than the API has threads
    with running_service(tmp_path / "home", launcher) as service, ThreadPoolExecutor(num_strangers) as pool:
        try:
            asked = [pool.submit(httpx.get, f"{service.url}/readyz", timeout=60) for _ in range(num_strangers)]
            wait_until(lambda: launcher.num_asked > 0, "the cluster is asked")
            assert service.client.get("/api/v1/jobs").status_code == 200
            assert service.client.get("/healthz").status_code == 200
        finally:
            launcher.go.set()
        assert {answer.result(60).status_code for answer in asked} == {200}
        assert launcher.num_asked < num_strangers


def test_openapi_tells_the_public_routes_and_our_errors(service: RunningService) -> None:
    document = service.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert not any("internal" in path for path in document["paths"])
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    for reference in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in document["components"]["schemas"]
    submit = document["paths"]["/api/v1/jobs"]["post"]
    assert "application/problem+json" in submit["responses"]["422"]["content"]
    assert "Effective sample size" in document["components"]["schemas"]["IVONSpec"]["properties"]["ess"]["description"]
    events = document["paths"]["/api/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    assert set(events) == {"application/json", "text/event-stream"}
    logs = document["paths"]["/api/v1/jobs/{job_id}/logs"]["get"]["responses"]["200"]["content"]
    assert set(logs) == {"application/json", "text/event-stream"}
    log = document["paths"]["/api/v1/jobs/{job_id}/logs/{attempt}/{name}"]["get"]["responses"]
    assert {status: set(log[status]["content"]) for status in ("200", "206")} == {
        "200": {"text/plain"}, "206": {"text/plain"}
    }  # fmt: skip


@pytest.mark.parametrize("path", ["metrics", "label-noise"])
def test_results_are_empty_before_there_are_any(
    service: RunningService, manifest: Path, launcher: SubprocessLauncher, path: str
) -> None:
    launcher.answers = False
    job = service.submit(manifest)
    answer = service.client.get(f"/api/v1/jobs/{job['id']}/{path}")
    assert answer.json() in ([], {"series": []})


@pytest.mark.parametrize(
    "path", ["evaluation", "examples", "label-noise?epoch=1", "evaluation?epoch=3", "examples?cursor=3-0"]
)
def test_results_that_are_not_there_yet(
    service: RunningService, manifest: Path, launcher: SubprocessLauncher, path: str
) -> None:
    launcher.answers = False
    job = service.submit(manifest)
    answer = service.client.get(f"/api/v1/jobs/{job['id']}/{path}")
    assert answer.status_code == 404
    assert "not there yet" in answer.json()["detail"]
