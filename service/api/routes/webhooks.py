"""Webhooks: register, list, delete, and see how deliveries went. For admins of the tenant."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query

from service.access.roles import Role
from service.api.auth import InPrincipal, require
from service.api.context import InContext
from service.api.errors import ProblemError, problems
from service.api.routes.jobs import json_only
from service.jobs.ids import is_id
from service.schemas import (
    CreatedWebhook,
    DeliveryPage,
    DeliveryView,
    FieldProblem,
    NewWebhook,
    WebhookMessage,
    WebhookPage,
    WebhookView,
)
from service.store import webhooks as store
from service.webhooks.addresses import AddressPolicy, parse_url, policy_of
from service.webhooks.signature import SECRET_BYTES, new_secret

router = APIRouter(prefix="/webhooks", tags=["webhooks"], dependencies=[require(Role.ADMIN)])

sent = APIRouter()
"""What we ask of others: documentation only."""

MAX_DELIVERY_ID = 2**63 - 1


def _known_webhook(
    webhook_id: Annotated[str, Path(description="Id of the webhook.")], context: InContext, principal: InPrincipal
) -> store.WebhookRecord:
    webhook = context.webhooks.find(webhook_id, principal.tenant) if is_id(webhook_id) else None
    if webhook is None:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"There is no webhook {webhook_id[:40]!r}.")
    return webhook


KnownWebhook = Annotated[store.WebhookRecord, Depends(_known_webhook)]


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    dependencies=[Depends(json_only)],
    responses=problems(400, 409, 413, 415, 422),
    summary="Register a webhook",
)
def create_webhook(new: NewWebhook, context: InContext, principal: InPrincipal) -> CreatedWebhook:
    """Have an address told of changes to the tenant's jobs from now on, by a signed POST (Standard Webhooks).

    A 2xx is taken as heard. Anything else is tried again, eight times over nine hours.
    """
    secret = new_secret(secrets.token_bytes(SECRET_BYTES))
    wanted = store.NewWebhook(principal.tenant, _url(new.url, policy_of(context.settings)), new.states, secret)
    try:
        made = context.webhooks.create(wanted, datetime.now(UTC))
    except store.TooManyWebhooksError:
        detail = f"The tenant has {store.MAX_PER_TENANT} webhooks already, which is the most; delete one first."
        raise ProblemError(HTTPStatus.CONFLICT, detail) from None
    return CreatedWebhook(**_view(made).model_dump(), secret=secret)


@router.get("", summary="List webhooks")
def list_webhooks(context: InContext, principal: InPrincipal) -> WebhookPage:
    """All webhooks of the tenant."""
    return WebhookPage(items=[_view(webhook) for webhook in context.webhooks.of_tenant(principal.tenant)])


@router.get("/{webhook_id}", responses=problems(404), summary="Look at a webhook")
def get_webhook(webhook: KnownWebhook) -> WebhookView:
    """A webhook, without its secret."""
    return _view(webhook)


@router.delete("/{webhook_id}", status_code=HTTPStatus.NO_CONTENT, responses=problems(404), summary="Delete a webhook")
def delete_webhook(webhook: KnownWebhook, context: InContext) -> None:
    """Tell it nothing more, not even what it has not heard yet."""
    context.webhooks.delete(webhook.id)


@router.get("/{webhook_id}/deliveries", responses=problems(404, 422), summary="What a webhook was told")
def list_deliveries(
    webhook: KnownWebhook,
    context: InContext,
    *,
    limit: Annotated[int, Query(ge=1, le=500, description="At most this many on a page.")] = 50,
    cursor: Annotated[
        int | None, Query(ge=1, le=MAX_DELIVERY_ID, description="`next_cursor` of the page before.")
    ] = None,
) -> DeliveryPage:
    """Deliveries of a webhook, newest first: which were heard, which are tried again, and what went wrong."""
    found = context.webhooks.deliveries(webhook.id, limit + 1, cursor)
    items = [_delivery_view(delivery) for delivery in found[:limit]]
    return DeliveryPage(items=items, next_cursor=items[-1].id if len(found) > limit else None)


@sent.post("job.state", status_code=HTTPStatus.NO_CONTENT, summary="A job has changed")
def _job_state(
    body: WebhookMessage,
    webhook_id: Annotated[str, Header(description="Of the delivery: the same at each try.")],
    webhook_timestamp: Annotated[int, Header(description="Seconds since 1970 when it was sent.")],
    webhook_signature: Annotated[str, Header(description="`v1,` and the signature, by Standard Webhooks.")],
) -> None:
    """Sent to a webhook when a job of its tenant has become one of its states. Any 2xx says that it was heard."""


def _url(text: str, policy: AddressPolicy) -> str:
    try:
        return str(parse_url(text, policy))
    except ValueError as error:
        wrong = FieldProblem(field="url", value=repr(text)[:200], message=str(error))
        detail = f"url = {wrong.value}: {error}"
        raise ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=[wrong]) from None


def _view(webhook: store.WebhookRecord) -> WebhookView:
    return WebhookView(id=webhook.id, url=webhook.url, states=list(webhook.states), created_at=webhook.created_at)


def _delivery_view(delivery: store.DeliveryRecord) -> DeliveryView:
    pending = delivery.next_try_at is not None
    return DeliveryView(
        id=delivery.id,
        event_id=delivery.event_id,
        job_id=delivery.job_id,
        job_state=delivery.state,
        status="pending" if pending else "given_up" if delivery.delivered_at is None else "delivered",
        num_tries=delivery.num_tries,
        next_try_at=delivery.next_try_at,
        delivered_at=delivery.delivered_at,
        last_error=delivery.last_error,
    )
