"""Tokens of the tenant, which its admins manage; and who somebody is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from service.access.roles import Role
from service.access.tokens import TokenRecord, bearer_id
from service.api.auth import InPrincipal, require
from service.api.context import InContext
from service.api.errors import ProblemError, problems
from service.api.routes.jobs import ID_PATTERN, Limit, json_only
from service.jobs.ids import is_id
from service.schemas import NewTokenView, TokenPage, TokenRequest, TokenView, WhoamiView
from service.store.tokens import NewToken

router = APIRouter(tags=["access"])


@router.post(
    "/tokens",
    status_code=HTTPStatus.CREATED,
    dependencies=[require(Role.ADMIN), Depends(json_only)],
    responses=problems(400, 413, 415, 422),
    summary="Make a token",
)
def create_token(body: TokenRequest, context: InContext, principal: InPrincipal, response: Response) -> NewTokenView:
    """A token for this tenant. The answer shows it, and nothing ever does again: the service keeps its hash only."""
    now = datetime.now(UTC)
    expires_at = None if body.expires_in_s is None else now + timedelta(seconds=body.expires_in_s)
    record, token = context.tokens.create(NewToken(principal.tenant, body.name, body.role, expires_at), now)
    response.headers["Cache-Control"] = "no-store"
    return NewTokenView(**token_view(record).model_dump(), token=token)


@router.get("/tokens", dependencies=[require(Role.ADMIN)], responses=problems(422), summary="List tokens")
def list_tokens(
    context: InContext,
    principal: InPrincipal,
    *,
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(pattern=ID_PATTERN, description="`next_cursor` of the page before.")] = None,
) -> TokenPage:
    """A page of the tenant's tokens, newest first, with those that are good no longer."""
    found = context.tokens.page(principal.tenant, limit + 1, cursor)
    items = [token_view(record) for record in found[:limit]]
    return TokenPage(items=items, next_cursor=items[-1].id if len(found) > limit else None)


@router.delete("/tokens/{token_id}", dependencies=[require(Role.ADMIN)], responses=problems(404, 409), summary="Revoke")
def revoke_token(
    token_id: Annotated[str, Path(description="Id of the token, which is not the token itself.")],
    context: InContext,
    principal: InPrincipal,
) -> TokenView:
    """Make a token worthless at once and for ever; not the one that asks. To repeat it is fine."""
    if principal.id == bearer_id(token_id):
        raise ProblemError(HTTPStatus.CONFLICT, "This token cannot revoke itself; make another one, and use that.")
    now = datetime.now(UTC)
    record = context.tokens.revoke(token_id, now, principal.tenant) if is_id(token_id) else None
    if record is None:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"There is no token of the id {token_id[:40]!r}.")
    return token_view(record)


@router.get("/whoami", summary="Who bears this token")
def get_whoami(principal: InPrincipal) -> WhoamiView:
    """Whom the service takes the bearer of the token for."""
    return WhoamiView(tenant=principal.tenant, role=principal.role, name=principal.name)


def token_view(record: TokenRecord) -> TokenView:
    """A token as the API shows it."""
    return TokenView(
        id=record.id,
        name=record.name,
        role=record.role,
        created_at=record.created_at,
        expires_at=record.expires_at,
        revoked_at=record.revoked_at,
    )
