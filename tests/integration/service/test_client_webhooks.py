"""Webhooks by the client, sync and async alike, and by the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from awaited_client import AnyClient, Connect
from command_line import Hush
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json
from webhook_receiver import Receiver, webhook_receiver

from service.client import InvalidRequestError, NotFoundError
from service.jobs.states import JobState
from trainer.spec import JobSpec

DEADLINE_S = 60


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with webhook_receiver() as made:
        yield made


@pytest.fixture
def service(tmp_path: Path, launcher: SubprocessLauncher, manifest: Path) -> Iterator[RunningService]:
    """That may call this machine."""
    settings = {"webhook_allow_http": True, "webhook_allowed_networks": "127.0.0.0/8"}
    roots = (manifest.parent.parent,)
    with running_service(tmp_path / "home", launcher, allowed_roots=roots, **settings) as running:
        yield running


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_webhook_from_its_registration_to_its_end(client: AnyClient, receiver: Receiver, manifest: Path) -> None:
    made = client.create_webhook(receiver.url, [JobState.SUCCEEDED])
    assert made.secret
    assert [(known.id, known.states) for known in client.webhooks()] == [(made.id, [JobState.SUCCEEDED])]
    assert client.webhook(made.id).url == receiver.url
    job = client.submit(JobSpec.model_validate(spec_json(manifest)))
    wait_until(lambda: [told.status for told in client.deliveries(made.id)] == ["delivered"])
    [told] = client.deliveries(made.id, page=1)
    assert (told.job_id, told.job_state) == (job.id, JobState.SUCCEEDED)
    assert json.loads(receiver.heard[0].body)["data"]["job"]["id"] == job.id
    client.delete_webhook(made.id)
    assert client.webhooks() == []
    with pytest.raises(NotFoundError):
        list(client.deliveries(made.id))


def test_where_no_webhook_may_go(client: AnyClient) -> None:
    assert client.create_webhook("https://example.org/hush").states == sorted(
        (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
    )
    with pytest.raises(InvalidRequestError, match="url = "):
        client.create_webhook("ftp://example.org")
    with pytest.raises(NotFoundError):
        client.delete_webhook("0" * 26)


def test_commands(service: RunningService, connect: Connect, receiver: Receiver, manifest: Path) -> None:
    hush, client = Hush(service.url, service.token), connect(service.url, service.token)
    code, secret, err = hush("webhook", "create", receiver.url, "--state", "failed")
    assert (code, secret.count("\n")) == (0, 1)
    [made] = client.webhooks()
    assert err.startswith(f"{made.id}: tells {receiver.url} of FAILED")
    client.submit(JobSpec.model_validate(spec_json(manifest, name="breaks")))
    wait_until(lambda: "delivered" in hush("webhook", "deliveries", made.id)[1])
    assert json.loads(hush("webhook", "deliveries", made.id, "--json")[1])[0]["job_state"] == "FAILED"
    assert receiver.url in hush("webhook", "list")[1]
    assert json.loads(hush("webhook", "list", "--json")[1])[0]["id"] == made.id
    assert hush("webhook", "delete", made.id) == (0, f"{made.id} is deleted\n", "")
    assert "--state DONE: must be one of QUEUED" in hush("webhook", "create", receiver.url, "--state", "DONE")[2]
    assert hush("webhook", "delete", made.id)[0] == 2
