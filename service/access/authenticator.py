"""Authenticator: from a bearer token to who bears it."""

from __future__ import annotations

from datetime import datetime

from service.access.errors import BadTokenError
from service.access.oidc import Oidc
from service.access.principal import Principal
from service.access.tokens import MAX_LENGTH, PREFIX, is_good, principal_of
from service.store.tokens import Tokens

UNKNOWN = "The bearer token is unknown, has expired or was revoked."
"""One answer for all three: whoever tries tokens learns nothing."""


class Authenticator:
    """Knows the tokens of the database, and the people of the identity provider where one is set up."""

    def __init__(self, tokens: Tokens, oidc: Oidc | None = None) -> None:
        """Asks nothing yet."""
        self._tokens = tokens
        self._oidc = oidc

    def principal(self, token: str, now: datetime) -> Principal:
        """Who bears `token`; BadTokenError if nobody may any more, IdentityProviderAwayError if it cannot be asked."""
        if len(token) > MAX_LENGTH or not token.isascii():
            raise BadTokenError(UNKNOWN)
        if self._oidc is not None and not token.startswith(PREFIX):
            return self._oidc.principal(token, now)
        found = self._tokens.find(token)
        if found is None or not is_good(found, now):
            raise BadTokenError(UNKNOWN)
        return principal_of(found)
