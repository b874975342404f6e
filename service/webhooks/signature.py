"""Signatures by the scheme of Standard Webhooks (version 1): HMAC-SHA256 over id, time and body. Pure.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hmac
from typing import Final

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - how every secret begins
SECRET_BYTES: Final = 32


def new_secret(random: bytes) -> str:
    """A secret of `SECRET_BYTES` random bytes, as the receiver's library takes it."""
    assert len(random) == SECRET_BYTES
    return SECRET_PREFIX + base64.b64encode(random).decode()


def signed_headers(secret: str, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The headers by which a receiver tells our message from anybody else's, and a new one from one heard before."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signature = hmac.digest(key, f"{message_id}.{timestamp_s}.".encode() + body, "sha256")
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }
