"""Authenticator: from a bearer token to who bears it."""

from __future__ import annotations

from datetime import datetime

from service.access.principal import Principal
from service.access.tokens import MAX_LENGTH, is_good, principal_of
from service.store.tokens import Tokens


class BadTokenError(Exception):
    """Nobody's token, or one that is good no longer; the message may be told to whoever sent it."""


class Authenticator:
    """Knows the tokens of the database."""

    def __init__(self, tokens: Tokens) -> None:
        """Asks nothing yet."""
        self._tokens = tokens

    def principal(self, token: str, now: datetime) -> Principal:
        """Who bears `token`; BadTokenError if nobody may any more."""
        if len(token) > MAX_LENGTH or not token.isascii():
            raise BadTokenError("The bearer token is none of this service.")
        found = self._tokens.find(token)
        # One answer for all three: whoever tries tokens learns nothing.
        if found is None or not is_good(found, now):
            raise BadTokenError("The bearer token is unknown, has expired or was revoked.")
        return principal_of(found)
