"""Secrets that are none: well-known ones, and those too short to be secret. Pure."""

from __future__ import annotations

from typing import Final

from pydantic import SecretStr
from sqlalchemy import make_url

from service.settings import Settings

MIN_LENGTH: Final = 12
WELL_KNOWN: Final = frozenset(
    {
        "admin", "administrator", "change-me", "change-me-now", "change_me", "changeit", "changeme", "changemeplease",
        "changethis", "default", "example", "hush", "hush-password", "hushpassword", "letmein", "mysecretpassword",
        "password", "password1234", "passwordpassword", "postgres", "postgresql", "postgrespassword", "root", "secret",
        "secretpassword", "supersecret", "supersecretpassword", "test", "token", "123456", "12345678", "123456789012",
    }
)  # fmt: skip
"""What stands in manuals and examples."""


def weak_secrets(settings: Settings) -> list[str]:
    """A line for each secret of the settings that others know or soon find: variable, and what is wrong with it."""
    found = []
    for variable, secret in _secrets(settings).items():
        if secret.lower() in WELL_KNOWN or len(set(secret)) < 4:
            found.append(f"{variable} holds a well-known secret; choose one at random, e.g.: openssl rand -hex 32")
        elif len(secret) < MIN_LENGTH:
            found.append(f"{variable} holds a secret of fewer than {MIN_LENGTH} characters; choose a longer one")
    return found


def _secrets(settings: Settings) -> dict[str, str]:
    """Every secret that is set, by its variable; a database without a password knows its users in another way."""
    fields = {name: getattr(settings, name) for name in type(settings).model_fields}
    found = {f"HUSH_{name.upper()}": v.get_secret_value() for name, v in fields.items() if isinstance(v, SecretStr)}
    database = make_url(settings.database)
    password = database.password or database.query.get("password")  # libpq takes it in either place
    return found if not isinstance(password, str) else {**found, "HUSH_DATABASE_URL": password}
