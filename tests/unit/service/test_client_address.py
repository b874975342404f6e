"""Which service is asked, and who gets which token."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.client import Client, UnreachableError
from service.client.address import find_address
from service.embedded.home import ServerAddresses, lock_home, write_addresses

HERE, THERE = "http://127.0.0.1:8900", "https://hush.example.org"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def serve(home: Path, token: str | None) -> None:
    addresses = ServerAddresses(
        url=HERE, mlflow_url="http://127.0.0.1:2", ray_url="http://127.0.0.1:3", pid=4, token=token
    )
    write_addresses(home, addresses)


@pytest.mark.parametrize(
    ("environ", "url", "found"),
    [
        ({}, None, (HERE, "own")),
        ({"HUSH_TOKEN": "mine"}, None, (HERE, "mine")),
        ({"HUSH_TOKEN": " "}, None, (HERE, "own")),
        ({"HUSH_URL": HERE + "/"}, None, (HERE, "own")),
        ({}, HERE, (HERE, "own")),
        ({}, THERE, (THERE, None)),
        ({"HUSH_URL": THERE}, None, (THERE, None)),
        ({"HUSH_URL": THERE}, HERE, (HERE, "own")),
        ({"HUSH_URL": THERE, "HUSH_TOKEN": "mine\n"}, None, (THERE, "mine")),
        ({"HUSH_URL": ""}, None, (HERE, "own")),
    ],
)
def test_a_servers_own_token_goes_to_nobody_else(
    home: Path, environ: dict[str, str], url: str | None, found: tuple[str, str | None]
) -> None:
    with lock_home(home):
        serve(home, "own")
        address = find_address(environ, url, home)
    assert (address.url, address.token) == found


def test_without_a_server_an_address_is_needed(home: Path) -> None:
    with pytest.raises(UnreachableError, match="hush serve"):
        find_address({}, None, home)
    assert find_address({"HUSH_URL": THERE}, None, home).url == THERE


def test_a_server_without_a_token_gets_none(home: Path) -> None:
    with lock_home(home):
        serve(home, None)
        assert find_address({}, None, home).headers == {}


def test_a_client_of_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSH_URL", THERE + "/")
    monkeypatch.setenv("HUSH_TOKEN", "mine")
    with Client.from_environment() as client:
        assert client.url == THERE
