"""Jobs whose data lies on S3: which addresses are admitted, and that others are not even asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, s3_server

from data_pipeline.storage.patience import Patience
from service.api import admission
from service.api.admission import admit
from service.api.errors import ProblemError
from service.settings import Settings
from trainer.spec import JobSpec


@pytest.fixture(scope="module")
def server(manifest: Path) -> Iterator[S3Server]:
    with s3_server() as running:
        running.upload(manifest.parent, "sets/digits")
        running.put("sets/other/manifest.json", b"{}")
        running.put("secret/manifest.json", b"{}")
        yield running


def admitted(manifest: str, *urls: str) -> None:
    admit(JobSpec.model_validate({"name": "job", "data": {"manifest": manifest}}), (), urls)


def refusal(manifest: str, *urls: str) -> str:
    with pytest.raises(ProblemError) as refused:
        admitted(manifest, *urls)
    assert refused.value.status == 422
    return str(refused.value.detail)


def test_what_lies_below_an_allowed_address_is_admitted(server: S3Server) -> None:
    address = server.s3_url("sets/digits/manifest.json")
    admitted(address, "https://elsewhere", "s3://data/sets")
    admitted(address, "s3://data/")
    admitted(server.http_url("sets/digits/manifest.json"), f"http://{server.proxy.address}")


@pytest.mark.parametrize(
    "address",
    [
        "s3://data/secret/manifest.json",
        "s3://data/sets2/manifest.json",
        "s3://data/sets/../secret/manifest.json",
        "s3://data/sets/%2e%2e/secret/manifest.json",
        "s3://data/sets/..%2fsecret/manifest.json",
        "s3://data/sets//manifest.json",
        "s3://data/sets/.. /secret/manifest.json",
        "s3://data/sets/.. /manifest.json",
        "s3://data/sets/..%20/manifest.json",
        "s3://data/sets/..\x00/manifest.json",
        "s3://data/sets/.\t./manifest.json",
        "s3://Data/sets/digits/manifest.json",
        "http://data/sets/manifest.json",
        "http://169.254.169.254/latest/meta-data",
        "s3://data/sets/digits/manifest.json?versionId=1",
        "http://me:secret@data/sets/manifest.json",
        "pipe:cat /etc/passwd",
        "file:///etc/passwd",
    ],
)
def test_no_other_is_even_asked(server: S3Server, address: str) -> None:
    server.proxy.set_faults(["none"])
    assert "data.manifest" in refusal(address, "s3://data/sets")
    assert server.proxy.requests == []


def test_by_default_none_is_allowed(server: S3Server) -> None:
    said = refusal(server.s3_url("sets/digits/manifest.json"), *Settings().allowed_urls)
    assert "none is allowed; HUSH_ALLOWED_URLS of the service sets these" in said


def test_an_address_that_gives_no_manifest(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "PATIENCE", Patience(retry_s=0.2, first_wait_s=0.01, silence_s=1))
    assert "no data set manifest" in refusal(server.s3_url("sets/other/manifest.json"), "s3://data")
    assert "there is no such file" in refusal(server.s3_url("sets/none/manifest.json"), "s3://data")
    server.proxy.set_faults(["500"])
    said = refusal("s3://data/sets/digits/manifest.json", "s3://data")
    assert "s3://data/sets/digits/manifest.json: Generic S3 error" in said


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSH_ALLOWED_URLS", "s3://bucket/sets, https://data.example.org")
    assert Settings().allowed_urls == ("s3://bucket/sets", "https://data.example.org")
    for wrong in ("/data", "ftp://host", "s3://bucket/../other"):
        monkeypatch.setenv("HUSH_ALLOWED_URLS", wrong)
        with pytest.raises(ValueError, match="allowed_urls"):
            Settings()
