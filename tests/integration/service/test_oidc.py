"""JWTs of a real identity provider: who is let in, who is not, and keys that change or cannot be had."""

from __future__ import annotations

import base64
import hmac
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from identity_provider import AUDIENCE, IdentityProvider, identity_provider
from joserfc import jws, jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey
from service_stand_ins import RunningService, SubprocessLauncher, running_service

from service.access.errors import BadTokenError
from service.access.jwks import COOL_DOWN_S, FRESH_S, STALE_S, IdentityProviderAwayError, Jwks, fetch_keys, read_keys
from service.access.oidc import Oidc, OidcRules, claim
from service.access.principal import Principal
from service.access.roles import Role


class Clock:
    """By which keys grow old: only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with identity_provider() as provider:
        yield provider


def oidc_of(provider: IdentityProvider, clock: Clock | None = None, **changes: Any) -> Oidc:
    rules: dict[str, Any] = {
        "issuer": provider.url,
        "audience": AUDIENCE,
        "algorithms": ("RS256", "ES256"),
        "tenant_claim": "hush_tenant",
        "role_claim": "hush_role",
        "leeway_s": 30,
        **changes,
    }
    return Oidc(OidcRules(**rules), Jwks(lambda: fetch_keys(provider.url, None)), clock or Clock())


def now() -> datetime:
    return datetime.now(UTC)


def test_claims_make_a_principal(provider: IdentityProvider) -> None:
    oidc = oidc_of(provider)
    token = provider.token(hush_tenant="vision", hush_role=["dev", "submitter", "viewer"], preferred_username="Ada L.")
    assert oidc.principal(token, now()) == Principal("vision", Role.SUBMITTER, "Ada L.", "oidc:ada")
    assert oidc.principal(provider.token(aud=["other", AUDIENCE]), now()).name == "ada"
    assert provider.num_fetches == 1, "keys are kept"


def test_claims_that_are_no_text(provider: IdentityProvider) -> None:
    claims = json.dumps(provider.claims(preferred_username="Ada\ud800", sub="\udfff"))
    token = jws.serialize_compact({"alg": "RS256", "kid": "one"}, claims.encode(), provider.key)
    principal = oidc_of(provider).principal(token, now())
    assert (principal.name, principal.id) == ("Ada?", "oidc:?")


def test_claims_elsewhere(provider: IdentityProvider) -> None:
    oidc = oidc_of(provider, tenant_claim="https://hush.example/tenant", role_claim="realm_access.roles")
    token = provider.token(**{"https://hush.example/tenant": "t", "realm_access": {"roles": ["admin"]}})
    assert oidc.principal(token, now()) == Principal("t", Role.ADMIN, "ada", "oidc:ada")
    assert claim({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert claim({"a": [{"b": 2}]}, "a.b") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://else.example"}, {"iss": None}, {"iss": 3}, {"aud": "else"}, {"aud": None}, {"aud": []},
        {"exp": None}, {"exp": "soon"}, {"exp": 1}, {"nbf": 2**40}, {"iat": 2**40}, {"sub": None}, {"sub": 3},
        {"hush_tenant": None}, {"hush_tenant": "UP"}, {"hush_tenant": ["default"]}, {"hush_tenant": "../x"},
        {"hush_role": None}, {"hush_role": "root"}, {"hush_role": []}, {"hush_role": ["Admin"]}, {"hush_role": 3},
        {"hush_role": {"admin": 1}},
    ],
)  # fmt: skip
def test_claims_that_are_not_good(provider: IdentityProvider, changes: dict[str, Any]) -> None:
    token = provider.token(**changes)
    with pytest.raises(BadTokenError):
        oidc_of(provider).principal(token, now())


def test_clocks_may_differ_a_little(provider: IdentityProvider) -> None:
    oidc, token = oidc_of(provider), provider.token()
    assert oidc.principal(token, now() + timedelta(seconds=300 + 25))
    assert oidc.principal(token, now() - timedelta(seconds=25))
    for off_s in (300 + 35, -35):
        with pytest.raises(BadTokenError):
            oidc.principal(token, now() + timedelta(seconds=off_s))


def test_signatures_that_prove_nothing(provider: IdentityProvider) -> None:
    oidc = oidc_of(provider)
    claims = provider.claims(hush_role="admin")
    assert isinstance(provider.key, RSAKey)
    shared = OctKey.generate_key(256)
    confused = f"{part({'alg': 'HS256', 'kid': 'one'})}.{part(claims)}"
    by_the_public_key = hmac.digest(provider.key.as_pem(private=False), confused.encode(), "sha256")
    confused += "." + base64.urlsafe_b64encode(by_the_public_key).rstrip(b"=").decode()
    stranger = jwt.encode({"alg": "RS256", "kid": "one"}, claims, RSAKey.generate_key(2048, {"kid": "one"}))
    unknown = jwt.encode({"alg": "RS256", "kid": "two"}, claims, provider.key)
    not_allowed = jwt.encode({"alg": "PS256", "kid": "one"}, claims, provider.key, algorithms=["PS256"])
    header, _, _ = provider.token().split(".")
    _, body, signature = provider.token(hush_role="admin").split(".")
    _, _, other_signature = provider.token().split(".")
    for token in (
        confused,
        stranger,
        unknown,
        not_allowed,
        f"{part({'alg': 'none'})}.{part(claims)}.",
        f"{part({'alg': 'none', 'kid': 'one'})}.{part(claims)}.{signature}",
        f"{header}.{body}.{other_signature}",
        f"{header}.{body}.",
        f"{part(['alg'])}.{body}.{signature}",
        f"{part({'alg': 'RS256', 'kid': 'one', 'jwk': shared.as_dict()})}.{body}.{signature}",
    ):
        with pytest.raises(BadTokenError):
            oidc.principal(token, now())


def part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def test_a_shared_secret_among_the_keys_is_none(provider: IdentityProvider) -> None:
    secret = OctKey.generate_key(256, {"kid": "shared"})
    published = {"keys": [secret.as_dict(private=True), {"kty": "new"}, {"kty": "RSA"}, 3, provider.key.as_dict()]}
    keys = read_keys(json.dumps(published).encode())
    assert [key.kid for key in keys] == ["one"]
    for nothing in ({"keys": [secret.as_dict(private=True)]}, {"keys": {}}, [], {"keys": None}):
        with pytest.raises(ValueError, match="no key"):
            read_keys(json.dumps(nothing).encode())


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.just({"alg": "RS256", "kid": "one"}),
    lambda inner: (
        st.dictionaries(st.sampled_from(["alg", "kid", "b64", "crit", "x"]), inner, max_size=3)
        | st.lists(inner, max_size=2)
    ),
    max_leaves=4,
)
JWTS = st.lists(JSON, min_size=3, max_size=3).map(lambda parts: ".".join(map(part, parts)))


@given(st.text(st.characters(codec="ascii"), max_size=60) | JWTS)
def test_whatever_is_sent_is_only_refused(token: str) -> None:
    keys = KeySet([RSAKey.import_key(SOME_KEY)])
    oidc = Oidc(OidcRules("i", "a", ("RS256",), "t", "r", 0), Jwks(lambda: keys), Clock())
    with pytest.raises(BadTokenError):
        oidc.principal(token, now())


SOME_KEY = RSAKey.generate_key(2048, {"kid": "one"}).as_dict(private=False)


class TestKeys:
    def test_a_new_key_is_fetched_when_it_is_first_seen(self, provider: IdentityProvider) -> None:
        clock = Clock()
        oidc = oidc_of(provider, clock)
        old = provider.token()
        assert oidc.principal(old, now())
        provider.rotate("two")
        with pytest.raises(BadTokenError):
            oidc.principal(provider.token(), now())  # too soon after the last time
        assert provider.num_fetches == 1
        clock.now += COOL_DOWN_S
        assert oidc.principal(provider.token(), now())
        with pytest.raises(BadTokenError):
            oidc.principal(old, now())
        assert provider.num_fetches == 2, "a key that nobody knows is not asked for again and again"

    def test_keys_grow_old(self, provider: IdentityProvider) -> None:
        clock = Clock()
        oidc = oidc_of(provider, clock)
        withdrawn = provider.token()
        assert oidc.principal(withdrawn, now())
        provider.rotate("two")
        clock.now += FRESH_S + 1
        with pytest.raises(BadTokenError):
            oidc.principal(withdrawn, now())

    def test_the_provider_is_away_for_a_while(self, provider: IdentityProvider) -> None:
        clock = Clock()
        oidc, token = oidc_of(provider, clock), provider.token()
        assert oidc.principal(token, now())
        provider.is_away = True
        clock.now += FRESH_S + 1
        assert oidc.principal(token, now()), "the keys of before do"
        clock.now += STALE_S
        with pytest.raises(IdentityProviderAwayError, match="503"):
            oidc.principal(token, now())
        provider.is_away = False
        clock.now += COOL_DOWN_S
        assert oidc.principal(token, now())

    def test_whose_key_is_known_does_not_wait_for_a_provider_that_hangs(self) -> None:
        known, asked, answer = KeySet([RSAKey.import_key(SOME_KEY)]), threading.Event(), threading.Event()

        def fetch() -> KeySet:
            if hangs.is_set():
                asked.set()
                assert answer.wait(60)
            return known

        jwks, hangs = Jwks(fetch), threading.Event()
        assert jwks.keys("one", 0) is known
        hangs.set()
        later = FRESH_S + 1
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(jwks.keys, "one", later)
            try:
                assert asked.wait(60)
                assert jwks.keys("one", later) is known
                with pytest.raises(IdentityProviderAwayError, match="slow"):
                    jwks.keys("two", later)
            finally:
                answer.set()
            assert first.result(60) is known

    def test_a_configuration_of_somebody_else_is_refused(self, provider: IdentityProvider) -> None:
        with pytest.raises(IdentityProviderAwayError, match="another issuer"):
            fetch_keys(f"{provider.url}/", None)
        with pytest.raises(IdentityProviderAwayError, match="ConnectError"):
            fetch_keys("http://127.0.0.1:9", None)
        assert [key.kid for key in fetch_keys("anything", f"{provider.url}/keys")] == ["one"]


@pytest.fixture
def service(
    tmp_path: Path, launcher: SubprocessLauncher, manifest: Path, provider: IdentityProvider
) -> Iterator[RunningService]:
    roots = (manifest.parent.parent,)
    oidc = {"oidc_issuer": provider.url, "oidc_audience": AUDIENCE}
    with running_service(tmp_path / "home", launcher, allowed_roots=roots, **oidc) as running:
        yield running


def test_over_http(service: RunningService, provider: IdentityProvider) -> None:
    with service.client_of(provider.token(hush_tenant="vision")) as ada:
        assert ada.get("/api/v1/whoami").json() == {"tenant": "vision", "role": "viewer", "name": "ada"}
        assert ada.post("/api/v1/jobs", json={}).status_code == 403
        assert ada.get("/api/v1/tokens").status_code == 403
    with service.client_of(provider.token(exp=1)) as late:
        answer = late.get("/api/v1/whoami")
        assert (answer.status_code, answer.json()["detail"]) == (401, "The bearer token has expired.")
        assert answer.headers["www-authenticate"] == 'Bearer realm="hush", error="invalid_token"'
    assert service.client.get("/api/v1/whoami").json()["name"] == "test", "tokens of our own are good beside it"


def test_over_http_while_the_provider_is_away(service: RunningService, provider: IdentityProvider) -> None:
    provider.is_away = True
    with service.client_of(provider.token()) as ada:
        answer = ada.get("/api/v1/jobs")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert answer.headers["content-type"] == "application/problem+json"
    assert service.client.get("/api/v1/jobs").status_code == 200


def test_an_elliptic_key(provider: IdentityProvider) -> None:
    provider.rotate("two")
    assert isinstance(provider.key, ECKey)
    assert oidc_of(provider).principal(provider.token(), now()).role is Role.VIEWER
