"""What routes ask about who asks: dependencies, which also tell OpenAPI that a bearer token is needed."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request, params
from fastapi.security import HTTPBearer

from service.access.principal import Principal
from service.access.roles import Role, allows
from service.api.errors import ProblemError

READING = frozenset({"GET", "HEAD"})

_SCHEME = HTTPBearer(
    scheme_name="token",
    auto_error=False,
    description="A token of `hush token create`, or of the identity provider where one is set up.",
)


async def _principal(request: Request, _documented: Annotated[object, Depends(_SCHEME)]) -> Principal:
    """Whom the gate (service.api.gate) has let in. A route outside of the gate lets nobody in."""
    principal = getattr(request.state, "principal", None)
    if not isinstance(principal, Principal):
        raise unauthorised("This needs a bearer token.")
    return principal


InPrincipal = Annotated[Principal, Depends(_principal)]


def require(role: Role) -> params.Depends:
    """For a route's `dependencies`: lets in who may do what takes `role`, and answers 403 to others."""

    async def check(principal: InPrincipal) -> None:
        _check(principal, role)

    return params.Depends(check)


async def read_or_write(request: Request, principal: InPrincipal) -> None:
    """Of every route: viewers read, and submitters change things. Routes that take more say so by `require`."""
    _check(principal, Role.VIEWER if request.method in READING else Role.SUBMITTER)


def unauthorised(detail: str, error: str | None = None) -> ProblemError:
    """A 401; `error` is that of RFC 6750, of a token that was sent."""
    challenge = 'Bearer realm="hush"' + ("" if error is None else f', error="{error}"')
    return ProblemError(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": challenge})


def bearer(authorization: str) -> str | None:
    """The token of an Authorization header; None if it bears none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _check(principal: Principal, needed: Role) -> None:
    if not allows(principal.role, needed):
        detail = f"This takes the role {needed}; {principal.name!r} has {principal.role}."
        raise ProblemError(HTTPStatus.FORBIDDEN, detail)
