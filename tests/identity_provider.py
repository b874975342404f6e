"""An OpenID Connect identity provider that really listens: its configuration, its keys, and the JWTs it signs."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

AUDIENCE = "hush"


class IdentityProvider:
    """Signs with its newest key; publishes all of `published`."""

    def __init__(self) -> None:
        self.url = ""
        self.key: RSAKey | ECKey = RSAKey.generate_key(2048, {"kid": "one"})
        self.published: list[RSAKey | ECKey | OctKey] = [self.key]
        self.is_away = False
        self.num_fetches = 0
        """Times that the keys were asked for."""

    def rotate(self, kid: str) -> None:
        self.key = ECKey.generate_key("P-256", {"kid": kid})
        self.published = [self.key]

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Of a viewer of the tenant `default`; None drops a claim."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ada",
            "iat": now,
            "exp": now + 300,
            "hush_tenant": "default",
            "hush_role": "viewer",
        }
        return {name: value for name, value in {**claims, **changes}.items() if value is not None}

    def token(self, **changes: Any) -> str:
        algorithm = "RS256" if isinstance(self.key, RSAKey) else "ES256"
        return jwt.encode({"alg": algorithm, "kid": self.key.kid}, self.claims(**changes), self.key)

    def answer(self, path: str) -> dict[str, Any] | None:
        if self.is_away:
            return None
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        if path == "/keys":
            self.num_fetches += 1
            return dict(KeySet(list(self.published)).as_dict(private=False))
        return None


@contextmanager
def identity_provider() -> Iterator[IdentityProvider]:
    """One that listens on a free port of this machine."""
    provider = IdentityProvider()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = provider.answer(self.path)
            body = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(503 if answer is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()
