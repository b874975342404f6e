"""A real S3 endpoint for a test, and a faulty proxy before it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from faulty_proxy import FaultyProxy
from moto.server import ThreadedMotoServer

from data_pipeline.storage.patience import Patience

BUCKET = "data"
QUICK = Patience(retry_s=60, first_wait_s=0.01, silence_s=0.5)
"""For a server on this machine."""


class S3Server:
    """One bucket. Requests of the product go through `proxy`, those of the test past it."""

    def __init__(self, server: tuple[str, int], proxy: FaultyProxy) -> None:
        self.proxy = proxy
        self._client = boto3.client("s3", endpoint_url=f"http://{server[0]}:{server[1]}", region_name="us-east-1")
        self._client.create_bucket(Bucket=BUCKET)

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content, ACL="public-read")

    def get(self, key: str) -> bytes:
        content: bytes = self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def keys(self, prefix: str) -> list[str]:
        """Of all objects below the prefix."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def upload(self, folder: Path, prefix: str) -> None:
        """All files of the folder."""
        for path in folder.iterdir():
            if path.is_file():
                self.put(f"{prefix}/{path.name}", path.read_bytes())

    def s3_url(self, key: str) -> str:
        return f"s3://{BUCKET}/{key}"

    def http_url(self, key: str) -> str:
        """The bucket may be read by anyone."""
        return f"http://{self.proxy.address}/{BUCKET}/{key}"


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server of its own, to which the environment points."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = FaultyProxy(server.get_host_and_port())
    environment = {
        "AWS_ENDPOINT_URL": f"http://{proxy.address}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            yield S3Server(server.get_host_and_port(), proxy)
    finally:
        proxy.close()
        server.stop()
