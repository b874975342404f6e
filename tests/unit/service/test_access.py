"""Roles, tokens, lifetimes, rate limits, addresses and secrets: all pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.access.expiry import parse_lifetime
from service.access.hosts import is_loopback
from service.access.principal import is_tenant
from service.access.rate_limit import Rate, RateLimiter, client_of
from service.access.roles import Role, allows, highest
from service.access.tokens import RANDOM_BYTES, TokenRecord, is_good, new_token
from service.access.weak_secrets import weak_secrets
from service.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("role", "may"),
    [
        (Role.VIEWER, {Role.VIEWER}),
        (Role.SUBMITTER, {Role.VIEWER, Role.SUBMITTER}),
        (Role.ADMIN, {Role.VIEWER, Role.SUBMITTER, Role.ADMIN}),
    ],
)
def test_what_each_role_may(role: Role, may: set[Role]) -> None:
    assert {needed for needed in Role if allows(role, needed)} == may


def test_the_highest_role() -> None:
    assert highest([]) is None
    assert highest([Role.VIEWER]) is Role.VIEWER
    assert highest([Role.SUBMITTER, Role.ADMIN, Role.VIEWER]) is Role.ADMIN


def test_a_token_holds_256_bits_and_says_whose_kind_it_is() -> None:
    token = new_token(bytes(range(RANDOM_BYTES)))
    assert token.startswith("hush_")
    assert len(token) == 5 + 43
    assert token != new_token(bytes(RANDOM_BYTES))


@pytest.mark.parametrize(
    ("expires_in_s", "is_revoked", "good"),
    [(None, False, True), (1, False, True), (0, False, False), (-1, False, False), (1, True, False)],
)
def test_when_a_token_is_good(expires_in_s: float | None, is_revoked: bool, good: bool) -> None:
    expires_at = None if expires_in_s is None else NOW + timedelta(seconds=expires_in_s)
    record = TokenRecord("i", "default", "n", Role.VIEWER, NOW, expires_at, NOW if is_revoked else None)
    assert is_good(record, NOW) is good


@pytest.mark.parametrize(
    ("text", "lifetime"),
    [
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        ("90d", timedelta(days=90)),
        ("4w", timedelta(weeks=4)),
        ("never", None),
    ],
)
def test_lifetimes(text: str, lifetime: timedelta | None) -> None:
    assert parse_lifetime(text) == lifetime


@pytest.mark.parametrize("text", ["", "0d", "-1d", "5y", "90", "90 d", "1.5h", "99999w", "９d", "Never", "1d\n"])
def test_what_is_no_lifetime(text: str) -> None:
    with pytest.raises(ValueError, match="must be never or like 30m"):
        parse_lifetime(text)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("default", True), ("a-1", True), ("a" * 63, True),
        ("", False), ("-a", False), ("A", False), ("a\n", False), ("a" * 64, False), ("ä", False),
    ],
)  # fmt: skip
def test_names_of_tenants(name: str, good: bool) -> None:
    assert is_tenant(name) is good


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_only(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "10.0.0.1", "a.org", "localhost.a.org", ""])
def test_other_machines_too(host: str) -> None:
    assert not is_loopback(host)


class TestRateLimit:
    def test_as_many_at_once_as_a_minute_has(self) -> None:
        limiter = RateLimiter(Rate(3))
        assert [limiter.wait_s("a", 100.0) for _ in range(3)] == [0, 0, 0]
        assert limiter.wait_s("a", 100.0) == pytest.approx(20)
        assert limiter.wait_s("b", 100.0) == 0, "each is counted alone"
        assert limiter.wait_s("a", 119.0) == pytest.approx(1), "those that were refused do not count"
        assert limiter.wait_s("a", 120.0) == 0
        assert limiter.wait_s("a", 120.0) > 0
        assert [limiter.wait_s("a", 240.0) for _ in range(4)][:3] == [0, 0, 0]

    def test_without_a_limit(self) -> None:
        limiter = RateLimiter(None)
        assert not any(limiter.wait_s("a", 0.0) for _ in range(1000))

    def test_those_that_have_not_come_for_longest_are_forgotten(self) -> None:
        limiter = RateLimiter(Rate(1), max_clients=2)
        for client in ("a", "b", "a", "c"):
            limiter.wait_s(client, 0.0)
        assert limiter.wait_s("a", 0.0) > 0
        assert limiter.wait_s("b", 0.0) == 0

    @given(st.integers(1, 100), st.lists(st.floats(0, 30), min_size=1, max_size=400))
    def test_no_minute_lets_in_more_than_twice_the_limit(self, per_minute: int, gaps_s: list[float]) -> None:
        """As many at once, and then as many again over the minute; and who waits as told is let in."""
        limiter, now, let_in = RateLimiter(Rate(per_minute)), 0.0, []
        for gap_s in gaps_s:
            now += gap_s
            wait_s = limiter.wait_s("a", now)
            if wait_s > 0:
                now += wait_s
                assert limiter.wait_s("a", now) == 0
            let_in.append(now)
        for start in let_in:
            assert sum(start <= time < start + 60 for time in let_in) <= 2 * per_minute + 1

    def test_who_has_no_token_is_counted_by_address(self) -> None:
        assert client_of("10.1.2.3") != client_of("10.1.2.4")
        assert client_of("::ffff:10.1.2.3") != client_of("::ffff:10.1.2.4")
        assert client_of("2001:db8::1") == client_of("2001:db8::ffff:1"), "one network is one client"
        assert client_of("2001:db8::1") != client_of("2001:db8:0:1::1")
        assert client_of(None) == client_of(None)
        assert client_of("testclient") == "address:testclient"


class TestSecrets:
    @pytest.mark.parametrize(
        ("settings", "variable"),
        [
            ({"database_url": "postgresql://hush:hush@db/hush"}, "HUSH_DATABASE_URL"),
            ({"database_url": "postgresql://hush:postgres@db/hush"}, "HUSH_DATABASE_URL"),
            ({"database_url": "postgresql://hush:mysecretpassword@db/hush"}, "HUSH_DATABASE_URL"),
            ({"database_url": "postgresql://hush:Zei7aiph@db/hush"}, "HUSH_DATABASE_URL"),
            ({"database_url": "postgresql://hush@db/hush?password=Zei7aiph"}, "HUSH_DATABASE_URL"),
            ({"ray_token": "changeme"}, "HUSH_RAY_TOKEN"),
            ({"ray_token": "000000000000000000"}, "HUSH_RAY_TOKEN"),
            ({"ray_token": "SuperSecretPassword"}, "HUSH_RAY_TOKEN"),
        ],
    )
    def test_weak_ones_are_named_and_not_told(self, settings: dict[str, str], variable: str) -> None:
        (line,) = weak_secrets(Settings.model_validate(settings))
        assert line.startswith(variable)
        assert settings.get("ray_token", "Zei7aiph") not in line

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"database_url": "postgresql://hush@db/hush"},
            {"database_url": "postgresql://hush:ohy9eiRahr0uchae@db/hush", "ray_token": "f3a94be0c7d1285e"},
        ],
    )
    def test_good_ones_pass(self, settings: dict[str, str]) -> None:
        assert weak_secrets(Settings.model_validate(settings)) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"oidc_issuer": "https://id.example.org"}, "oidc_audience"),
        ({"oidc_audience": "hush"}, "oidc_issuer"),
        ({"oidc_issuer": "http://id.example.org", "oidc_audience": "hush"}, "https://"),
        ({"oidc_jwks_url": "http://id.example.org/keys"}, "https://"),
        ({"oidc_algorithms": "HS256"}, "RS256"),
        ({"oidc_algorithms": "none"}, "RS256"),
        ({"oidc_algorithms": ""}, "RS256"),
        ({"rate_limit_per_minute": -1}, "rate_limit_per_minute"),
        ({"max_page_size": 1}, "max_page_size"),
    ],
)
def test_settings_that_would_let_anybody_in(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings.model_validate(settings)


def test_algorithms_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HUSH_OIDC_ALGORITHMS", "ES256, EdDSA")
    assert Settings(home=tmp_path).oidc_algorithms == ("ES256", "EdDSA")
