"""Webhooks from the change of a job to the one who hears of it, on both databases."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from pathlib import Path

import pytest
from service_stand_ins import RunningService, SubprocessLauncher, running_service
from sqlalchemy import Engine
from stored_jobs import move, spec, start_job
from webhook_receiver import Receiver, status, webhook_receiver

from service.access.roles import Role
from service.api.views import webhook_body
from service.jobs.records import EventRecord, JobRecord, LeaseLostError, Submission
from service.jobs.states import JobState, Reason
from service.store.database import open_engine
from service.store.leases import Leases
from service.store.store import Store
from service.store.webhooks import NewWebhook, Webhooks
from service.webhooks.addresses import AddressPolicy
from service.webhooks.post import Poster
from service.webhooks.schedule import MAX_TRIES, Outcome
from service.webhooks.sender import LEASE, LEASE_S, LOOK_S, NUM_PER_TENANT, NUM_SENDERS, Outbox, WebhookSender
from service.webhooks.signature import new_secret

SECRET = new_secret(bytes(range(32)))
LOCAL = AddressPolicy((ip_network("127.0.0.0/8"),), allow_http=True)
DEADLINE_S = 60


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with webhook_receiver() as made:
        yield made


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def body(event: EventRecord, job: JobRecord) -> bytes:
    return webhook_body(event, job, None)


def sender(engine: Engine, holder: str = "one") -> WebhookSender:
    return WebhookSender(Outbox(Webhooks(engine), Leases(engine), Poster(LOCAL, 10), body), holder, lambda: 0.0)


def register(engine: Engine, url: str, *states: JobState, tenant: str = "default") -> str:
    return Webhooks(engine).create(NewWebhook(tenant, url, states, SECRET), datetime.now(UTC)).id


def look(sender: WebhookSender, now: datetime) -> None:
    """Look once, and wait for what that began."""
    sender.look(now)
    wait_until(lambda: not sender.is_busy)


def test_the_states_asked_for_are_told_once_each_in_order(engine: Engine, receiver: Receiver) -> None:
    store, one = Store(engine), sender(engine)
    hook = register(engine, receiver.url, JobState.STARTING, JobState.FAILED)
    register(engine, receiver.url, JobState.FAILED, tenant="others")
    job = start_job(store)
    move(store, job, JobState.RUNNING, Reason.FIRST_HEARTBEAT)
    move(store, job, JobState.FAILED, Reason.OUT_OF_MEMORY)
    for _ in range(4):
        look(one, datetime.now(UTC))
    one.stop()
    told = [json.loads(heard.body) for heard in receiver.heard]
    assert [message["data"]["event"]["state"] for message in told] == ["STARTING", "FAILED"]
    assert {message["data"]["job"]["id"] for message in told} == {job.id}
    assert {message["type"] for message in told} == {"job.state"}
    deliveries = Webhooks(engine).deliveries(hook, 10)
    assert [(d.state, d.num_tries, d.next_try_at, d.last_error) for d in deliveries] == [
        (JobState.FAILED, 1, None, None),
        (JobState.STARTING, 1, None, None),
    ]
    assert [heard.headers["webhook-id"] for heard in receiver.heard] == [f"msg_{d.id}" for d in reversed(deliveries)]


def test_a_delivery_is_tried_until_it_is_heard(engine: Engine, receiver: Receiver) -> None:
    hook, one = register(engine, receiver.url, JobState.QUEUED), sender(engine)
    Store(engine).submit(Submission("default", spec()), datetime.now(UTC))
    receiver.answers += [status(500), status(503)]
    now = datetime.now(UTC)
    look(one, now)
    assert Webhooks(engine).deliveries(hook, 10)[0].last_error == "answered 500"
    look(one, now)  # too early
    assert len(receiver.heard) == 1
    for hours in (1, 2, 3):
        look(one, now + timedelta(hours=hours))
    one.stop()
    assert len(receiver.heard) == 3
    assert len({heard.headers["webhook-id"] for heard in receiver.heard}) == 1
    (delivery,) = Webhooks(engine).deliveries(hook, 10)
    assert delivery.delivered_at is not None
    assert (delivery.num_tries, delivery.last_error, Webhooks(engine).num_pending()) == (3, None, 0)


def test_a_delivery_is_given_up_at_last(engine: Engine, receiver: Receiver) -> None:
    hook, one = register(engine, receiver.url, JobState.QUEUED), sender(engine)
    Store(engine).submit(Submission("default", spec()), datetime.now(UTC))
    receiver.answers += [status(500)] * (MAX_TRIES + 5)
    for tries in range(MAX_TRIES + 5):
        look(one, datetime.now(UTC) + timedelta(days=tries))
    one.stop()
    (delivery,) = Webhooks(engine).deliveries(hook, 10)
    assert (delivery.num_tries, delivery.next_try_at, delivery.delivered_at) == (MAX_TRIES, None, None)
    assert delivery.last_error == "answered 500"
    assert len(receiver.heard) == MAX_TRIES
    assert one.counts == {"failed": MAX_TRIES - 1, "given_up": 1}


def test_a_server_that_hangs_keeps_no_other_waiting(engine: Engine, receiver: Receiver) -> None:
    store, one, go = Store(engine), sender(engine), threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        go.wait(DEADLINE_S)
        status(204)(handler)

    with webhook_receiver() as hangs:
        hangs.answers.append(hang)
        for url in (hangs.url, receiver.url):
            register(engine, url, JobState.QUEUED)
        for _ in range(3):
            store.submit(Submission("default", spec()), datetime.now(UTC))

        def heard_all() -> bool:
            one.look(datetime.now(UTC))
            return len(receiver.heard) == 3

        wait_until(heard_all)
        assert len(hangs.heard) == 1
        go.set()
        one.stop()


def test_a_tenant_whose_servers_all_hang_keeps_no_other_waiting(engine: Engine, receiver: Receiver) -> None:
    store, one, go = Store(engine), sender(engine), threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        go.wait(DEADLINE_S)
        status(204)(handler)

    with webhook_receiver() as hangs:
        hangs.answers += [hang] * NUM_SENDERS
        for number in range(NUM_SENDERS):
            register(engine, hangs.url, JobState.QUEUED, tenant=f"hangs-{number % 2}")
        register(engine, receiver.url, JobState.QUEUED)
        for tenant in ("hangs-0", "hangs-1", "default"):
            store.submit(Submission(tenant, spec()), datetime.now(UTC))

        def heard() -> bool:
            one.look(datetime.now(UTC))
            return len(receiver.heard) == 1

        wait_until(heard)
        assert len(hangs.heard) <= 2 * NUM_PER_TENANT
        go.set()
        one.stop()


def test_what_cannot_be_attended_to_is_not_tried_without_a_pause(engine: Engine, receiver: Receiver) -> None:
    began, tried_at = time.monotonic(), []

    def stumble(_event: EventRecord, _job: JobRecord) -> bytes:
        tried_at.append(time.monotonic())
        raise RuntimeError("a fault of ours")

    outbox = Outbox(Webhooks(engine), Leases(engine), Poster(LOCAL, 10), stumble)
    register(engine, receiver.url, JobState.QUEUED)
    Store(engine).submit(Submission("default", spec()), datetime.now(UTC))
    one = WebhookSender(outbox, "one", lambda: 0.0)
    one.start()
    wait_until(lambda: len(tried_at) >= 3)
    one.stop()
    assert len(tried_at) <= 2 + (time.monotonic() - began) / LOOK_S


def test_of_two_senders_one_sends(engine: Engine, receiver: Receiver) -> None:
    store = Store(engine)
    register(engine, receiver.url, JobState.QUEUED)
    for _ in range(20):
        store.submit(Submission("default", spec()), datetime.now(UTC))
    senders = [sender(engine, holder) for holder in ("one", "two")]
    for each in senders:
        each.start()
    wait_until(lambda: Webhooks(engine).num_pending() == 0)
    for each in senders:
        each.stop()
    ids = [heard.headers["webhook-id"] for heard in receiver.heard]
    assert len(ids) == len(set(ids)) == 20
    assert sorted(each.counts["delivered"] for each in senders) == [0, 20]


def test_a_sender_that_slept_through_its_lease_keeps_nothing(engine: Engine, receiver: Receiver) -> None:
    hook, webhooks, leases = register(engine, receiver.url, JobState.QUEUED), Webhooks(engine), Leases(engine)
    Store(engine).submit(Submission("default", spec()), datetime.now(UTC))
    now = datetime.now(UTC)
    (delivery,) = webhooks.due(now, {}, 10, 10)
    old = leases.acquire(LEASE, "one", now, LEASE_S)
    new = leases.acquire(LEASE, "two", now + timedelta(seconds=LEASE_S + 1), LEASE_S)
    assert old is not None
    assert new is not None
    with pytest.raises(LeaseLostError):
        webhooks.record(delivery, Outcome(1, delivered_at=now), old)
    assert webhooks.deliveries(hook, 10)[0].num_tries == 0
    webhooks.record(delivery, Outcome(1, delivered_at=now), new)
    assert webhooks.deliveries(hook, 10)[0].delivered_at is not None


def test_a_webhook_that_is_deleted_fails_no_change_of_a_job(engine: Engine, receiver: Receiver) -> None:
    store, webhooks, ended = Store(engine), Webhooks(engine), threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            webhooks.delete(register(engine, receiver.url, JobState.QUEUED))

    with ThreadPoolExecutor(3) as pool:
        coming = [pool.submit(come_and_go) for _ in range(3)]
        try:
            for _ in range(100):
                store.submit(Submission("default", spec()), datetime.now(UTC))
        finally:
            ended.set()
    for each in coming:
        each.result()
    assert webhooks.num_pending() == 0


@pytest.fixture
def service(tmp_path: Path, launcher: SubprocessLauncher, manifest: Path) -> Iterator[RunningService]:
    settings = {"webhook_allow_http": True, "webhook_allowed_networks": "127.0.0.0/8"}
    home, roots = tmp_path / "home", (manifest.parent.parent,)
    with running_service(home, launcher, allowed_roots=roots, **settings) as running:
        yield running


def test_over_rest(service: RunningService, manifest: Path, receiver: Receiver) -> None:
    made = service.client.post("/api/v1/webhooks", json={"url": receiver.url})
    assert made.status_code == 201, made.text
    hook = made.json()
    assert hook["states"] == ["CANCELLED", "FAILED", "SUCCEEDED"]
    secret = hook.pop("secret")
    job = service.submit(manifest)
    wait_until(lambda: bool(receiver.heard))
    heard = receiver.heard[0]
    signed = f"{heard.headers['webhook-id']}.{heard.headers['webhook-timestamp']}.".encode() + heard.body
    digest = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, "sha256")
    assert heard.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    message = json.loads(heard.body)
    assert message["data"]["event"]["state"] == message["data"]["job"]["state"] == "SUCCEEDED"
    assert message["data"]["job"] == service.client.get(f"/api/v1/jobs/{job['id']}").json()

    url = f"/api/v1/webhooks/{hook['id']}"
    wait_until(lambda: service.client.get(f"{url}/deliveries").json()["items"][0]["status"] == "delivered")
    assert service.client.get(url).json() == hook
    assert service.client.get("/api/v1/webhooks").json() == {"items": [hook]}
    assert service.client.delete(url).status_code == 204
    assert service.client.get(url).status_code == 404
    assert service.client.get("/api/v1/webhooks").json() == {"items": []}


def test_deliveries_page_by_page(service: RunningService, manifest: Path, receiver: Receiver) -> None:
    states = ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    hook = service.client.post("/api/v1/webhooks", json={"url": receiver.url, "states": states}).json()
    service.wait_for(service.submit(manifest)["id"], "SUCCEEDED")
    url, found, cursor = f"/api/v1/webhooks/{hook['id']}/deliveries", [], None
    while True:
        params = {"limit": 3} | ({} if cursor is None else {"cursor": cursor})
        page = service.client.get(url, params=params).json()
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [delivery["job_state"] for delivery in found] == states[::-1]


def test_what_is_refused(service: RunningService) -> None:
    def post(**new: object) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        answer = service.client.post("/api/v1/webhooks", content=json.dumps(new), headers=headers)
        return answer.status_code, answer.json()["detail"]

    assert post(url="ftp://example.org") == (422, "url = 'ftp://example.org': must start with https:// or http://")
    assert post(url="https://10.0.0.1/")[0] == 422
    assert post(url="https://\ud800\x00")[0] == 422
    assert post(url="https://example.org", states=[])[0] == 422
    assert post(url="https://example.org", states=["DONE"])[0] == 422
    assert post(url="https://example.org", secret="mine")[0] == 422
    for path in ("x", "0" * 26, f"{'0' * 26}/deliveries"):
        assert service.client.get(f"/api/v1/webhooks/{path}").status_code == 404
    for _ in range(20):
        assert service.client.post("/api/v1/webhooks", json={"url": "https://example.org"}).status_code == 201
    assert post(url="https://example.org")[0] == 409


def test_whose_it_is(service: RunningService) -> None:
    hook = service.client.post("/api/v1/webhooks", json={"url": "https://example.org"}).json()
    for role in (Role.VIEWER, Role.SUBMITTER):
        with service.client_of(service.new_token(role)) as client:
            assert client.get("/api/v1/webhooks").status_code == 403
            assert client.post("/api/v1/webhooks", json={"url": "https://example.org"}).status_code == 403
    with service.client_of(service.new_token(tenant="others")) as client:
        assert client.get("/api/v1/webhooks").json() == {"items": []}
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/deliveries")):
            assert client.request(method, f"/api/v1/webhooks/{hook['id']}{path}").status_code == 404


def test_the_message_is_documented(service: RunningService) -> None:
    document = service.client.get("/openapi.json").json()
    told = document["webhooks"]["job.state"]["post"]
    assert told["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/WebhookMessage")
    assert {p["name"] for p in told["parameters"]} == {"webhook-id", "webhook-timestamp", "webhook-signature"}
    assert "HTTPValidationError" not in json.dumps(document)
