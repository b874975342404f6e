"""The part of the settings that says who may come in, and how often."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.access.hosts import is_loopback

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
"""Signatures of a key pair. A shared secret (HS256) or none at all is no proof of who signed."""

ALGORITHMS: Final[tuple[str, ...]] = get_args(Algorithm)


class AccessOptions(BaseSettings):
    """Read as part of service.settings.Settings."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    rate_limit_per_minute: int = Field(default=6000, ge=0)
    """Requests a minute that each principal may send, and each client address without a good token; as many may come
    at once. 0: no limit. Each replica counts for itself; heartbeats of attempts are not counted."""
    max_page_size: int = Field(default=1000, ge=200, le=1000)
    """Pages that are asked for with a larger `limit` are refused; some routes have a lower one of their own."""
    oidc_issuer: str | None = None
    """Issuer of an OpenID Connect identity provider whose JWTs are taken as bearer tokens; unset: none."""
    oidc_audience: str | None = None
    """Audience that its JWTs must name: this service, as the identity provider knows it."""
    oidc_jwks_url: str | None = None
    """Address of its keys; unset: the one that its `/.well-known/openid-configuration` names."""
    oidc_algorithms: Annotated[tuple[Algorithm, ...], NoDecode] = ("RS256", "ES256")
    """Signatures that are taken, between spaces or commas."""
    oidc_tenant_claim: str = Field(default="hush_tenant", min_length=1)
    """Claim that holds the tenant's name; dots lead into objects, e.g. `hush.tenant`."""
    oidc_role_claim: str = Field(default="hush_role", min_length=1)
    """Claim that holds the role, or a list with roles in it, e.g. `realm_access.roles`; the highest one counts."""
    oidc_leeway_s: int = Field(default=30, ge=0, le=300)
    """Seconds that its clock and ours may differ."""

    @field_validator("oidc_algorithms", mode="before")
    @classmethod
    def _split_algorithms(cls, algorithms: object) -> object:
        return tuple(algorithms.replace(",", " ").split()) if isinstance(algorithms, str) else algorithms

    @field_validator("oidc_issuer", "oidc_jwks_url", mode="after")
    @classmethod
    def _cannot_be_listened_to(cls, url: str | None) -> str | None:
        """Whoever can change the keys under way lets himself in."""
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            return url
        raise ValueError(f"{url!r} must begin with https:// (http:// is for servers on this machine)")

    @model_validator(mode="after")
    def _oidc_is_whole(self) -> Self:
        if self.oidc_issuer is not None and not self.oidc_audience:
            raise ValueError("oidc_audience must be set with oidc_issuer: else JWTs made for others would be taken")
        if self.oidc_issuer is None and (self.oidc_audience or self.oidc_jwks_url):
            raise ValueError("oidc_issuer must be set, too")
        if not self.oidc_algorithms:
            raise ValueError(f"oidc_algorithms must name at least one of {', '.join(ALGORITHMS)}")
        return self
