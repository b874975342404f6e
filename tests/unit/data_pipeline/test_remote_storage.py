"""What a storage says that cannot be reached, or that nobody gave credentials for."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from data_pipeline.errors import StorageError
from data_pipeline.storage import storage_for
from data_pipeline.storage.patience import Patience
from data_pipeline.storage.remote import _reason

HASTY = Patience(retry_s=0.1, first_wait_s=0.01, silence_s=1)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine at which nobody answers, and that nobody else is given meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_no_server_answers(closed_port, monkeypatch):
    with pytest.raises(StorageError, match=r"set/manifest\.json: no server answers; is the address right\?"):
        storage_for(f"http://127.0.0.1:{closed_port}/set", HASTY).read("manifest.json")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(StorageError, match=r"no server answers; are AWS_ENDPOINT_URL and AWS_REGION right\?"):
        storage_for("s3://bucket/set", HASTY).read("manifest.json")


def test_no_credentials():
    told = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1s - 403 Forbidden"
    assert _reason(told, is_s3=True).startswith("no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    assert _reason(told, is_s3=False) == told
