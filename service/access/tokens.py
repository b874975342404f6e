"""API tokens: what one looks like, and what is kept of it. Pure."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from service.access.principal import Principal
from service.access.roles import Role

PREFIX: Final = "hush_"
"""Begins every token, so that scanners find one that was committed by mistake."""
RANDOM_BYTES: Final = 32
MAX_LENGTH: Final = 8192
"""No token is longer, not even that of an identity provider."""
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,99}$"
"""What the name of a token looks like."""
LOCAL_NAME: Final = "(hush serve)"
"""Name of the token that `hush serve` makes for this machine; nobody can give it to another."""


@dataclass(frozen=True)
class TokenRecord:
    """A token as it is stored: without itself."""

    id: str
    tenant: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def new_token(random: bytes) -> str:
    """A token of 256 random bits."""
    assert len(random) == RANDOM_BYTES
    return PREFIX + base64.urlsafe_b64encode(random).rstrip(b"=").decode()


def is_good(token: TokenRecord, now: datetime) -> bool:
    """Whether it still opens the door."""
    return token.revoked_at is None and (token.expires_at is None or now < token.expires_at)


def principal_of(token: TokenRecord) -> Principal:
    """Who bears it."""
    return Principal(token.tenant, token.role, token.name, bearer_id(token.id))


def bearer_id(token_id: str) -> str:
    """Id of the principal that bears a token."""
    return f"token:{token_id}"
