"""The identity provider's keys: fetched, kept for a while, and fetched again when it signs with a new one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, KeySet

from service.access.hosts import is_loopback

TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 1 << 20
FRESH_S: Final = 600.0
"""Keys this young are taken without asking again."""
STALE_S: Final = 24 * 3600.0
"""Keys this old are taken no more, even if the identity provider does not answer."""
COOL_DOWN_S: Final = 10.0
"""It is asked no more often, however many tokens name a key that nobody knows."""
WAIT_S: Final = 1.0
"""Whoever needs a key that is not known waits no longer for another thread to fetch it."""
KEY_TYPES: Final = frozenset({"RSA", "EC", "OKP"})
"""Key pairs. A shared secret among published keys is none."""


class IdentityProviderAwayError(Exception):
    """Its keys cannot be had now; the message says why."""


class Jwks:
    """The keys, whoever asks from whichever thread. One thread fetches; others go by the keys there are meanwhile, so
    that an identity provider which hangs keeps nobody waiting whose key is known."""

    def __init__(self, fetch: Callable[[], KeySet]) -> None:
        """Nothing is fetched yet; `fetch` raises IdentityProviderAwayError."""
        self._fetch = fetch
        self._fetching = threading.Lock()
        self._held = _Held(None, float("-inf"))
        self._tried_at = float("-inf")
        self._trouble = ""

    def keys(self, kid: str | None, now: float) -> KeySet:
        """The keys, with the one named `kid` in it if the identity provider has it; `now` in seconds."""
        if not self._held.suffices(kid, now, FRESH_S):
            suffices_meanwhile = self._held.suffices(kid, now, STALE_S)
            if self._fetching.acquire(timeout=0 if suffices_meanwhile else WAIT_S):
                self._fetch_and_release(kid, now)
            elif not suffices_meanwhile:
                raise IdentityProviderAwayError("the identity provider has been asked for its keys, and is slow")
        held = self._held
        if held.keys is None or now - held.fetched_at > STALE_S:
            raise IdentityProviderAwayError(self._trouble)
        return held.keys

    def _fetch_and_release(self, kid: str | None, now: float) -> None:
        """Unless another thread has done it by now, or tried a moment ago."""
        try:
            if not self._held.suffices(kid, now, FRESH_S) and now - self._tried_at >= COOL_DOWN_S:
                self._tried_at = now
                self._held = _Held(self._fetch(), now)
        except IdentityProviderAwayError as error:
            self._trouble = str(error)
        finally:
            self._fetching.release()


@dataclass(frozen=True)
class _Held:
    """What was fetched last, as a whole: a thread reads it while another replaces it."""

    keys: KeySet | None
    fetched_at: float

    def suffices(self, kid: str | None, now: float, max_age_s: float) -> bool:
        """Whether the key named `kid` is there (None: any), and no older than that."""
        if self.keys is None or now - self.fetched_at > max_age_s:
            return False
        return kid is None or any(key.kid == kid for key in self.keys)


def fetch_keys(issuer: str, jwks_url: str | None) -> KeySet:
    """Ask the identity provider, over the network; IdentityProviderAwayError if that does not work out."""
    try:
        return read_keys(_get(jwks_url or _discover(issuer)))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise IdentityProviderAwayError(f"the keys of {issuer} cannot be had ({reason})") from None


def read_keys(document: bytes) -> KeySet:
    """Those keys of a JWK set that can be used, whatever else lies among them; ValueError if there is none."""
    entries = json.loads(document)
    entries = entries.get("keys") if isinstance(entries, dict) else None
    keys = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("kty") in KEY_TYPES:
            try:
                keys.append(JWKRegistry.import_key(entry))
            except (JoseError, ValueError, TypeError, KeyError):
                continue  # of a kind, or a curve, that is not known here
    if not keys:
        raise ValueError("no key that can be used")
    return KeySet(keys)


def _discover(issuer: str) -> str:
    document = json.loads(_get(f"{issuer.rstrip('/')}/.well-known/openid-configuration"))
    if not isinstance(document, dict) or document.get("issuer") != issuer:
        raise ValueError("its configuration names another issuer")
    url = document.get("jwks_uri")
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or not (parts.scheme == "https" or is_loopback(parts.hostname or "")):
        raise ValueError(f"its configuration names no safe jwks_uri, but {url!r}")
    return str(url)


def _get(url: str) -> bytes:
    """The body of an answer, if it is one and no larger than it should be. Redirects are not followed."""
    with httpx.stream("GET", url, timeout=TIMEOUT_S, headers={"Accept": "application/json"}) as response:
        response.raise_for_status()
        body = b""
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueError(f"{url} answers with more than {MAX_BYTES} bytes")
        return body
