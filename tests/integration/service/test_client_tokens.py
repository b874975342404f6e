"""Tokens by the client, sync and async alike, and by the command line: over the API and in the database."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from awaited_client import AnyClient, Connect
from command_line import Hush
from faulty_proxy import FaultyProxy
from service_stand_ins import RunningService
from typer.testing import CliRunner

from service.access.roles import Role
from service.cli import app
from service.client import (
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    UnauthorizedError,
    UnreachableError,
)


def test_a_token_from_its_making_to_its_end(client: AnyClient, service: RunningService, connect: Connect) -> None:
    made = client.create_token("ci", Role.SUBMITTER, expires_in_s=3600)
    assert made.expires_at is not None
    bearer = connect(service.url, made.token)
    who = bearer.whoami()
    assert (who.tenant, who.role, who.name) == ("default", Role.SUBMITTER, "ci")
    assert list(bearer.jobs()) == []
    assert made.id in {token.id for token in client.tokens(page=1)}
    assert client.revoke_token(made.id).revoked_at is not None
    assert client.revoke_token(made.id).revoked_at is not None, "to repeat it is fine"
    with pytest.raises(UnauthorizedError):
        bearer.whoami()
    with pytest.raises(UnauthorizedError):
        list(bearer.follow("0" * 26))


def test_what_is_refused(client: AnyClient, service: RunningService, connect: Connect) -> None:
    viewer = connect(service.url, client.create_token("eye", Role.VIEWER, expires_in_s=None).token)
    with pytest.raises(ForbiddenError, match="takes the role"):
        viewer.create_token("more", Role.ADMIN, expires_in_s=None)
    with pytest.raises(ForbiddenError):
        list(viewer.tokens())
    with pytest.raises(InvalidRequestError, match="expires_in_s = 1"):
        client.create_token("short", Role.VIEWER, expires_in_s=1)
    with pytest.raises(NotFoundError):
        client.revoke_token("0" * 26)
    with pytest.raises(UnauthorizedError):
        connect(service.url).whoami()


def test_a_token_is_not_made_twice(client: AnyClient, service: RunningService, connect: Connect) -> None:
    """A lost answer is not asked for again; a request that was turned away is sent again."""
    url = httpx.URL(service.url)
    assert url.port is not None
    proxy = FaultyProxy((url.host, url.port), ["429", "answer lost"], methods=("POST",))
    try:
        with pytest.raises(UnreachableError):
            connect(f"http://{proxy.address}", service.token).create_token("once", Role.VIEWER, expires_in_s=None)
    finally:
        proxy.close()
    assert proxy.counts == {"429": 1, "answer lost": 1}
    assert [token.name for token in client.tokens()].count("once") == 1


class TestCommands:
    def test_over_the_api(self, service: RunningService, client: AnyClient) -> None:
        hush = Hush(service.url, service.token)
        made = json.loads(hush("token", "create", "ci", "--role", "viewer", "--expires", "12h", "--json")[1])
        assert (made["tenant"], made["role"]) == ("default", "viewer")
        assert Hush(service.url, made["token"])("jobs")[0] == 0
        assert hush("token", "create", "plain", "--expires", "never")[1].startswith("hush_")
        assert {"ci", "plain"} <= {token["name"] for token in json.loads(hush("token", "list", "--json")[1])}
        assert "until it is revoked" in hush("token", "list")[1]
        assert hush("token", "revoke", made["id"])[1] == "ci of tenant default is revoked\n"
        assert "no longer: revoked" in hush("token", "list")[1]
        code, _, err = hush("token", "list", "--tenant", "vision")
        assert (code, err) == (2, "hush: --tenant vision: over the API it is that of HUSH_TOKEN, default\n")
        assert (
            "role admin"
            in Hush(service.url, client.create_token("eye", Role.VIEWER, expires_in_s=None).token)("token", "list")[2]
        )

    def test_in_the_database(self, tmp_path: Path) -> None:
        def run(*argv: str) -> tuple[int, str, str]:
            env = {"HUSH_HOME": str(tmp_path / "home"), "HUSH_URL": "", "HUSH_TOKEN": ""}
            result = CliRunner().invoke(app, ["token", *argv], env=env)
            return result.exit_code, result.stdout, result.stderr

        made = json.loads(run("create", "alice", "--role", "admin", "--tenant", "vision", "--json")[1])
        assert (made["tenant"], made["role"], made["token"][:5]) == ("vision", "admin", "hush_")
        assert run("create", "bob", "--tenant", "no tenant")[0] == 2
        assert run("create", "")[2].startswith("hush: NAME = '': must match")
        assert run("create", "bob", "--expires", "soon")[2].startswith(
            "hush: --expires 'soon' must be never or like 30m"
        )
        assert [token["name"] for token in json.loads(run("list", "--tenant", "vision", "--json")[1])] == ["alice"]
        assert json.loads(run("list", "--tenant", "other", "--json")[1]) == []
        assert json.loads(run("revoke", made["id"], "--json")[1])["revoked_at"] is not None
        assert "there is no token of the id" in run("revoke", "x")[2]
        elsewhere = ("--database-url", f"sqlite:///{tmp_path / 'home' / 'hush.db'}", "--url", "http://127.0.0.1:9")
        assert run("list", *elsewhere)[0] == 0, "a database that is named comes first"
