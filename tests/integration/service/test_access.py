"""Who may do what, asked of every route that there is; tokens over REST; rate and page limits."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from postgres_server import PostgresServer
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json

from service.access.roles import Role, allows
from service.api.app import create_app
from service.settings import Settings

DOCUMENTS = {"/docs", "/docs/oauth2-redirect", "/openapi.json", "/static-offline-docs"}
OPEN = {"/", "/healthz", "/readyz", "/metrics"} | DOCUMENTS
"""Whoever comes may see these."""
WITH_TOKENS_OF_THEIR_OWN = {"/api/v1/internal/attempts/{job_id}/{attempt}/heartbeat"}
FOR_ADMINS = ("/api/v1/tokens", "/api/v1/webhooks")
READING = {"GET", "HEAD"}
NOBODY = "0" * 26
NOTHING = {"attempt": "1", "name": "driver", "example_id": "x"} | dict.fromkeys(
    ("job_id", "token_id", "study_id", "webhook_id"), NOBODY
)
"""What stands in paths: of nothing that there is."""


@dataclass(frozen=True)
class Route:
    """A method at a path, with names in it."""

    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def needed(self) -> Role:
        if self.path.startswith(FOR_ADMINS):
            return Role.ADMIN
        return Role.VIEWER if self.method in READING else Role.SUBMITTER


def all_routes() -> list[Route]:
    app = create_app(Settings(home=Path("/nonexistent")))
    contexts = list(iter_route_contexts(app.routes))
    assert len(contexts) > 15
    return [Route(m, str(c.path)) for c in contexts for m in sorted(c.methods or {"GET"})]


GUARDED = [route for route in all_routes() if route.path not in OPEN | WITH_TOKENS_OF_THEIR_OWN]
OF_SOMETHING = [route for route in GUARDED if "{" in route.path]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> Iterator[RunningService]:
    launcher = SubprocessLauncher()
    launcher.answers = False  # nothing that is accepted here shall start
    home = tmp_path_factory.mktemp("access") / "home"
    with running_service(home, launcher, allowed_roots=(manifest.parent.parent,)) as running:
        yield running


@pytest.fixture(scope="module")
def things(service: RunningService, manifest: Path) -> dict[str, str]:
    """What stands in paths: of each kind one, of the tenant `default`."""
    study = {"name": "a-study", "base": spec_json(manifest), "grid": {"seed": [1, 2]}}

    def make(what: str, body: dict[str, Any]) -> str:
        answer = service.client.post(f"/api/v1/{what}", json=body)
        assert answer.is_success, answer.text
        return str(answer.json()["id"])

    return {
        "job_id": make("jobs", spec_json(manifest)),
        "token_id": make("tokens", {"name": "a thing"}),
        "study_id": make("studies", study),
        "webhook_id": make("webhooks", {"url": "https://example.org/hook", "states": ["FAILED"]}),
        "attempt": "1",
        "name": "driver",
        "example_id": "x",
    }


def ask(client: httpx.Client, route: Route, things: dict[str, str]) -> httpx.Response:
    path = route.path
    for whole, name in re.findall(r"({(\w+)(?::path)?})", path):
        path = path.replace(whole, things[name])
    body = {} if route.method in READING | {"DELETE"} else {"json": {}}
    return client.request(route.method, path, **body)


def is_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    return dict(answer.json())


def test_there_is_something_to_ask() -> None:
    assert Route("POST", "/api/v1/jobs") in GUARDED
    assert Route("GET", "/api/v1/jobs/{job_id}/events") in OF_SOMETHING
    assert all(route.path.startswith("/api/v1/") for route in GUARDED), "nothing but the known few is open"


@pytest.mark.parametrize("route", OF_SOMETHING, ids=str)
def test_what_is_another_tenants_is_not_there(service: RunningService, things: dict[str, str], route: Route) -> None:
    with service.client_of(service.new_token(Role.ADMIN, "other")) as other:
        theirs, nothing = ask(other, route, things), ask(other, route, NOTHING)
    assert is_problem(theirs, 404)
    assert strip(theirs, things) == strip(nothing, things), "it answers as if there were none"


def strip(answer: httpx.Response, things: dict[str, str]) -> str:
    text = answer.text
    for value in (*things.values(), NOBODY):
        text = text.replace(value, "ID")
    return text


@pytest.mark.parametrize("route", GUARDED, ids=str)
def test_nobody_comes_in_without_a_good_token(service: RunningService, things: dict[str, str], route: Route) -> None:
    now = datetime.now(UTC)
    expired = service.new_token(expires_at=now - timedelta(seconds=1))
    revoked = service.new_token()
    found = service.tokens.find(revoked)
    assert found is not None
    service.tokens.revoke(found.id, now)
    with service.client_of(None) as nobody:
        assert is_problem(ask(nobody, route, things), 401)
        for authorization in ("", "Bearer", f"Basic {service.token}", service.token, "Bearer a b"):
            answer = ask_with(nobody, authorization, route, things)
            assert is_problem(answer, 401)
            assert answer.headers["www-authenticate"].startswith('Bearer realm="hush"')
    for token in ("x", "hush_", service.token + "x", service.token.upper(), "hush_" + "x" * 9000, expired, revoked):
        with service.client_of(token) as stranger:
            answer = ask(stranger, route, things)
            assert is_problem(answer, 401)
            assert answer.headers["www-authenticate"] == 'Bearer realm="hush", error="invalid_token"'
            assert "hush_" not in answer.text


def ask_with(client: httpx.Client, authorization: str, route: Route, things: dict[str, str]) -> httpx.Response:
    client.headers["Authorization"] = authorization
    return ask(client, route, things)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("route", GUARDED, ids=str)
def test_each_role_does_what_it_may(service: RunningService, things: dict[str, str], route: Route, role: Role) -> None:
    with service.client_of(service.new_token(role)) as client:
        answer = ask(client, route, things)
    if allows(role, route.needed):
        assert answer.status_code not in {401, 403, 429}, answer.text
        assert answer.status_code < 500, answer.text
    else:
        assert is_problem(answer, 403)["detail"].endswith(f"'test' has {role}.")


@pytest.mark.parametrize("path", sorted(OPEN & {route.path for route in all_routes()} - {"/static-offline-docs"}))
def test_what_is_open(service: RunningService, path: str) -> None:
    with service.client_of(None) as nobody:
        assert nobody.get(path).status_code in {200, 307, 503}


def test_the_document_says_so(service: RunningService) -> None:
    document = service.client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert (operation.get("security") == [{"token": []}]) is path.startswith("/api/v1/")
            if path.startswith("/api/v1/"):
                assert {"401", "403", "429"} <= set(operation["responses"])


class TestTokens:
    def test_a_life(self, service: RunningService) -> None:
        answer = service.client.post("/api/v1/tokens", json={"name": "ci", "role": "submitter", "expires_in_s": 60})
        made = answer.json()
        assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
        assert datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"]) == timedelta(
            seconds=60
        )
        with service.client_of(made["token"]) as ci:
            assert ci.get("/api/v1/whoami").json() == {"tenant": "default", "role": "submitter", "name": "ci"}
            shown = service.client.get("/api/v1/tokens")
            assert shown.json()["items"][0] == {key: value for key, value in made.items() if key != "token"}
            assert made["token"] not in shown.text
            revoked = service.client.delete(f"/api/v1/tokens/{made['id']}").json()
            assert revoked["revoked_at"] is not None
            assert service.client.delete(f"/api/v1/tokens/{made['id']}").json() == revoked, "once is once"
            assert is_problem(ci.get("/api/v1/whoami"), 401)

    def test_the_database_does_not_know_it(self, service: RunningService) -> None:
        token = service.client.post("/api/v1/tokens", json={"name": "secret"}).json()["token"]
        for file in service.settings.home.glob("hush.db*"):
            assert token.encode() not in file.read_bytes()

    def test_a_token_does_not_revoke_itself(self, service: RunningService) -> None:
        mine = service.tokens.find(service.token)
        assert mine is not None
        assert is_problem(service.client.delete(f"/api/v1/tokens/{mine.id}"), 409)
        assert service.client.get("/api/v1/whoami").status_code == 200

    def test_pages_show_the_tenants_own(self, service: RunningService) -> None:
        with service.client_of(service.new_token(Role.ADMIN, "paging")) as admin:
            ids = [admin.post("/api/v1/tokens", json={"name": f"n{i}"}).json()["id"] for i in range(3)]
            first = admin.get("/api/v1/tokens?limit=2").json()
            second = admin.get("/api/v1/tokens", params={"limit": 2, "cursor": first["next_cursor"]}).json()
        assert [token["id"] for token in first["items"]] == ids[:0:-1]
        assert [token["name"] for token in second["items"]] == ["n0", "test"]
        assert second["next_cursor"] is None

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "name"),
            ({"name": ""}, "name"),
            ({"name": "(hush serve)"}, "name"),
            ({"name": "a\n"}, "name"),
            ({"name": "a", "role": "root"}, "role"),
            ({"name": "a", "expires_in_s": 0}, "expires_in_s"),
            ({"name": "a", "expires_in_s": 10**12}, "expires_in_s"),
            ({"name": "a", "tenant": "other"}, "tenant"),
        ],
    )
    def test_bad_ones(self, service: RunningService, body: dict[str, Any], field: str) -> None:
        (error,) = is_problem(service.client.post("/api/v1/tokens", json=body), 422)["errors"]
        assert error["field"] == field

    def test_an_id_that_is_none(self, service: RunningService) -> None:
        for token_id in ("x", "%00", NOBODY, "a" * 5000):
            assert is_problem(service.client.delete(f"/api/v1/tokens/{token_id}"), 404)


def test_too_large_a_page(service: RunningService, tmp_path: Path, launcher: SubprocessLauncher) -> None:
    with running_service(tmp_path / "home", launcher, max_page_size=200) as small:
        assert small.client.get("/api/v1/jobs?limit=200").status_code == 200
        (error,) = is_problem(small.client.get("/api/v1/jobs?limit=201"), 422)["errors"]
        assert (error["field"], error["value"]) == ("query.limit", "201")
        assert "HUSH_MAX_PAGE_SIZE" in error["message"]
        assert is_problem(small.client.get(f"/api/v1/jobs?limit={'9' * 5000}"), 422)
    assert service.client.get("/api/v1/jobs?limit=500").status_code == 200


def test_while_the_database_is_away(tmp_path: Path, launcher: SubprocessLauncher, postgres: PostgresServer) -> None:
    database = postgres.new_database()
    with running_service(tmp_path / "home", launcher, database_url=postgres.url(database)) as service:
        assert service.client.get("/api/v1/jobs").status_code == 200
        postgres.drop(database)
        answer = service.client.get("/api/v1/jobs")
        assert is_problem(answer, 503)
        assert answer.headers["retry-after"] == "2"


class TestRateLimit:
    @pytest.fixture
    def few(self, tmp_path: Path, launcher: SubprocessLauncher) -> Iterator[RunningService]:
        with running_service(tmp_path / "home", launcher, rate_limit_per_minute=3) as running:
            yield running

    def test_each_principal_is_counted_alone(self, few: RunningService) -> None:
        answers = [few.client.get("/api/v1/jobs") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
        assert "3 requests a minute" in is_problem(answers[-1], 429)["detail"]
        with few.client_of(few.new_token()) as another:
            assert another.get("/api/v1/jobs").status_code == 200

    def test_strangers_are_counted_by_address(self, few: RunningService) -> None:
        statuses = []
        for token in (None, "x", None, "hush_y", None):
            with few.client_of(token) as stranger:
                statuses.append(stranger.get("/api/v1/jobs").status_code)
        assert statuses == [401, 401, 401, 429, 429]
        assert few.client.get("/api/v1/jobs").status_code == 200, "who has a token is none of them"

    def test_health_and_heartbeats_are_not_counted(self, few: RunningService) -> None:
        for _ in range(8):
            assert few.client.get("/healthz").status_code == 200
            beat = few.client.post(f"/api/v1/internal/attempts/{NOBODY}/1/heartbeat", json={})
            assert beat.status_code == 422
        assert few.client.get("/api/v1/jobs").status_code == 200


def test_a_stranger_is_sent_away_before_the_body_is_read(service: RunningService) -> None:
    url = httpx.URL(service.url)
    headers = {"Host": url.host, "Content-Type": "application/json", "Content-Length": "99"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        connection.sendall(f"POST /api/v1/jobs HTTP/1.1\r\n{head}\r\n{{".encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 401 "), "the rest is not waited for"
