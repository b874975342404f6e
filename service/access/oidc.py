"""OpenID Connect: JWTs of an identity provider as bearer tokens. The only import of joserfc's JWT."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import extract_compact

from service.access.errors import BadTokenError
from service.access.jwks import Jwks, fetch_keys
from service.access.options import AccessOptions
from service.access.principal import TENANT_PATTERN, Principal, is_tenant
from service.access.roles import Role, highest

Claims = dict[str, object]

MAX_NAME: Final = 100


@dataclass(frozen=True)
class OidcRules:
    """Whose JWTs are taken, and where in them tenant and role are."""

    issuer: str
    audience: str
    algorithms: Sequence[str]
    tenant_claim: str
    role_claim: str
    leeway_s: int


class Oidc:
    """Knows the people of one identity provider."""

    def __init__(self, rules: OidcRules, jwks: Jwks, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: by which keys grow old."""
        self._rules = rules
        self._jwks = jwks
        self._clock = clock

    def principal(self, token: str, now: datetime) -> Principal:
        """Who bears a JWT; BadTokenError if it is none of ours, IdentityProviderAwayError without any keys."""
        keys = self._jwks.keys(_key_id(token), self._clock())
        return verify(token, keys, self._rules, now)


def oidc_of(options: AccessOptions) -> Oidc | None:
    """As the settings say; None without an identity provider."""
    issuer, jwks_url = options.oidc_issuer, options.oidc_jwks_url
    if issuer is None:
        return None
    assert options.oidc_audience is not None, "the settings see to it"
    rules = OidcRules(
        issuer=issuer,
        audience=options.oidc_audience,
        algorithms=options.oidc_algorithms,
        tenant_claim=options.oidc_tenant_claim,
        role_claim=options.oidc_role_claim,
        leeway_s=options.oidc_leeway_s,
    )
    return Oidc(rules, Jwks(lambda: fetch_keys(issuer, jwks_url)))


def verify(token: str, keys: KeySet, rules: OidcRules, now: datetime) -> Principal:
    """Who bears a JWT that one of `keys` signed, that is made for us, and good now; else BadTokenError."""
    try:
        claims = jwt.decode(token, keys, algorithms=list(rules.algorithms)).claims
        _registry(rules, now).validate(claims)
    except ExpiredTokenError:
        raise BadTokenError("The bearer token has expired.") from None
    except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadTokenError(f"The bearer token is not good: {type(error).__name__}.") from error
    return _principal(claims, rules)


def claim(claims: Claims, name: str) -> object:
    """The value of a claim; of one with dots in its name that is not there, what they lead to. None if nothing is."""
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _registry(rules: OidcRules, now: datetime) -> jwt.JWTClaimsRegistry:
    return jwt.JWTClaimsRegistry(
        now=int(now.timestamp()),
        leeway=rules.leeway_s,
        iss={"essential": True, "value": rules.issuer},
        aud={"essential": True, "value": rules.audience},
        exp={"essential": True},
        sub={"essential": True},
    )


def _principal(claims: Claims, rules: OidcRules) -> Principal:
    tenant, subject = claim(claims, rules.tenant_claim), claims["sub"]
    if not isinstance(tenant, str) or not is_tenant(tenant):
        raise BadTokenError(f"The bearer token's claim {rules.tenant_claim!r} must be a tenant: {TENANT_PATTERN}")
    given = claim(claims, rules.role_claim)
    role = highest([role for role in Role if role in (given if isinstance(given, list) else [given])])
    if role is None:
        raise BadTokenError(f"The bearer token's claim {rules.role_claim!r} must hold one of: {', '.join(Role)}")
    name = claims.get("preferred_username")
    shown = name if isinstance(name, str) and name else str(subject)
    return Principal(tenant, role, _text(shown[:MAX_NAME]), f"oidc:{_text(str(subject))}")


def _text(claimed: str) -> str:
    """Without lone surrogates, which JSON can smuggle into a string but UTF-8 cannot carry out again."""
    return claimed.encode(errors="replace").decode()


def _key_id(token: str) -> str | None:
    """Which key a token says it was signed with; BadTokenError if it is no JWT."""
    try:
        kid = extract_compact(token.encode()).headers().get("kid")
    except (JoseError, ValueError, TypeError, AttributeError, RecursionError):  # a header may be any JSON
        raise BadTokenError("The bearer token is unknown, has expired or was revoked.") from None
    return kid if isinstance(kid, str) else None
