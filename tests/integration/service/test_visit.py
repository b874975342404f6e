"""Streams end with the token they were opened with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from service_stand_ins import RunningService

from service.api import visit
from service.api.routes import events, logs


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "RECHECK_S", 0.1)
    for module in (events, logs):
        monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.1)


def lines(stream: Iterator[str], seconds: float) -> list[str]:
    """What comes within a time, at least a line."""
    until = time.monotonic() + seconds
    found = []
    for line in stream:
        found.append(line)
        if time.monotonic() > until:
            break
    return found


@pytest.mark.parametrize("what", ["events", "logs"])
def test_a_stream_ends_when_its_token_is_revoked(service: RunningService, manifest: Path, what: str) -> None:
    job = service.submit(manifest, name="waits")
    service.wait_for(job["id"], "RUNNING")
    token = service.new_token()
    with service.client_of(token) as visitor:
        headers = {"Accept": "text/event-stream"}
        with visitor.stream("GET", f"/api/v1/jobs/{job['id']}/{what}", headers=headers) as answer:
            assert answer.status_code == 200
            stream = answer.iter_lines()
            assert lines(stream, 1), "a good token keeps it open"
            found = service.tokens.find(token)
            assert found is not None
            service.tokens.revoke(found.id, datetime.now(UTC))
            rest = list(stream)
        assert "event: end" not in rest
        assert visitor.get(f"/api/v1/jobs/{job['id']}").status_code == 401
    assert service.client.get(f"/api/v1/jobs/{job['id']}").json()["state"] == "RUNNING"
