"""Webhooks and their outbox in SQL. A delivery is written with the event it tells of (`writes.insert_state_event`)."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, Row, RowMapping, delete, func, insert, select, update

from service.jobs.ids import new_id
from service.jobs.records import EventRecord, Fence, JobRecord, event_record
from service.jobs.states import JobState
from service.store.database import writing
from service.store.tables import job_events, webhook_deliveries, webhooks
from service.store.writes import get_job, hold
from service.webhooks.schedule import Outcome

MAX_PER_TENANT = 20
DUE_PER_LOOK = 200


class TooManyWebhooksError(Exception):
    """The tenant has MAX_PER_TENANT already."""


@dataclass(frozen=True)
class NewWebhook:
    """A webhook to be made."""

    tenant: str
    url: str
    states: Sequence[JobState]
    secret: str


@dataclass(frozen=True)
class WebhookRecord:
    """Somebody who is told of jobs that change to one of `states`."""

    id: str
    tenant: str
    url: str
    secret: str
    states: Sequence[JobState]
    created_at: datetime


@dataclass(frozen=True)
class DeliveryRecord:
    """What a webhook is told of one event, and how that went."""

    id: int
    event_id: int
    job_id: str
    state: JobState
    num_tries: int
    next_try_at: datetime | None
    """None once it is delivered or given up."""
    delivered_at: datetime | None
    last_error: str | None


@dataclass(frozen=True)
class DueDelivery:
    """A delivery whose time has come, with all it takes to send it."""

    id: int
    num_tries: int
    webhook: WebhookRecord
    event: EventRecord
    job: JobRecord
    """As it is now."""


class Webhooks:
    """The webhooks of one database."""

    def __init__(self, engine: Engine) -> None:
        """`engine` comes from `database.open_engine`."""
        self._engine = engine
        self._writing = writing(engine)

    def create(self, new: NewWebhook, now: datetime) -> WebhookRecord:
        """A webhook, told of what happens from now on; TooManyWebhooksError."""
        values = {
            "id": new_id(now, secrets.randbits(80)),
            "tenant": new.tenant,
            "url": new.url,
            "secret": new.secret,
            "states": list(new.states),
            "created_at": now,
        }
        of_tenant = select(func.count()).where(webhooks.c.tenant == new.tenant).select_from(webhooks)
        with self._writing.begin() as connection:
            if connection.execute(of_tenant).scalar_one() >= MAX_PER_TENANT:
                raise TooManyWebhooksError
            row = connection.execute(insert(webhooks).values(values).returning(webhooks)).mappings().one()
            return _webhook_record(row)

    def of_tenant(self, tenant: str) -> list[WebhookRecord]:
        """A tenant's webhooks, the newest first."""
        query = select(webhooks).where(webhooks.c.tenant == tenant).order_by(webhooks.c.id.desc())
        with self._engine.begin() as connection:
            return [_webhook_record(row) for row in connection.execute(query).mappings()]

    def find(self, webhook_id: str, tenant: str) -> WebhookRecord | None:
        """A webhook of a tenant, or None."""
        query = select(webhooks).where(webhooks.c.id == webhook_id, webhooks.c.tenant == tenant)
        with self._engine.begin() as connection:
            row = connection.execute(query).mappings().first()
            return None if row is None else _webhook_record(row)

    def delete(self, webhook_id: str) -> None:
        """Tell it nothing any more; what it was not told yet is dropped."""
        with self._writing.begin() as connection:
            connection.execute(delete(webhooks).where(webhooks.c.id == webhook_id))

    def deliveries(self, webhook_id: str, limit: int, before_id: int | None = None) -> list[DeliveryRecord]:
        """A webhook's newest deliveries, at most `limit`, older than `before_id`."""
        query = (
            select(webhook_deliveries, job_events.c.job_id, job_events.c.state)
            .join(job_events, job_events.c.id == webhook_deliveries.c.event_id)
            .where(webhook_deliveries.c.webhook_id == webhook_id)
            .order_by(webhook_deliveries.c.id.desc())
            .limit(limit)
        )
        if before_id is not None:
            query = query.where(webhook_deliveries.c.id < before_id)
        with self._engine.begin() as connection:
            return [_delivery_record(row) for row in connection.execute(query).mappings()]

    def num_pending(self) -> int:
        """Deliveries that are neither done nor given up."""
        pending = webhook_deliveries.c.next_try_at.is_not(None)
        with self._engine.begin() as connection:
            return connection.execute(select(func.count()).where(pending)).scalar_one()

    def due(self, now: datetime, busy: Mapping[str, str], limit: int, per_tenant: int) -> list[DueDelivery]:
        """The deliveries that have been due longest, at most `limit`: one a webhook, and with `busy` (webhooks that are
        being told already, with their tenants) at most `per_tenant` a tenant."""
        num = Counter(busy.values())
        full = [tenant for tenant in num if num[tenant] >= per_tenant]
        this = webhook_deliveries.c
        query = select(this.id, this.num_tries, this.webhook_id, this.event_id, webhooks.c.tenant)
        query = query.join(webhooks, webhooks.c.id == this.webhook_id)
        query = query.where(this.next_try_at <= now, this.webhook_id.not_in(busy), webhooks.c.tenant.not_in(full))
        query = query.order_by(this.next_try_at, this.id).limit(DUE_PER_LOOK)
        chosen: dict[str, Row[int, int, str, int, str]] = {}
        with self._engine.begin() as connection:
            for row in connection.execute(query):
                if row.webhook_id not in chosen and num[row.tenant] < per_tenant and len(chosen) < limit:
                    chosen[row.webhook_id] = row
                    num[row.tenant] += 1
            found = (_due_delivery(connection, row) for row in chosen.values())
            return [delivery for delivery in found if delivery is not None]

    def record(self, delivery: DueDelivery, outcome: Outcome, fence: Fence) -> None:
        """Keep how a try went; nothing if the webhook is gone by now. LeaseLostError if others send by now."""
        values = {
            "num_tries": outcome.num_tries,
            "next_try_at": outcome.next_try_at,
            "delivered_at": outcome.delivered_at,
            "last_error": outcome.error,
        }
        this = (webhook_deliveries.c.id == delivery.id, webhook_deliveries.c.num_tries == delivery.num_tries)
        with self._writing.begin() as connection:
            hold(connection, fence)
            connection.execute(update(webhook_deliveries).where(*this).values(values))


def _due_delivery(connection: Connection, row: Row[int, int, str, int, str]) -> DueDelivery | None:
    hook = connection.execute(select(webhooks).where(webhooks.c.id == row.webhook_id)).mappings().first()
    if hook is None:
        return None  # deleted since we looked
    event_row = connection.execute(select(job_events).where(job_events.c.id == row.event_id)).mappings().one()
    event = event_record(event_row)
    return DueDelivery(row.id, row.num_tries, _webhook_record(hook), event, get_job(connection, event.job_id))


def _webhook_record(row: RowMapping) -> WebhookRecord:
    return WebhookRecord(
        id=row["id"],
        tenant=row["tenant"],
        url=row["url"],
        secret=row["secret"],
        states=[JobState(state) for state in row["states"]],
        created_at=row["created_at"],
    )


def _delivery_record(row: RowMapping) -> DeliveryRecord:
    return DeliveryRecord(
        id=row["id"],
        event_id=row["event_id"],
        job_id=row["job_id"],
        state=JobState(row["state"]),
        num_tries=row["num_tries"],
        next_try_at=row["next_try_at"],
        delivered_at=row["delivered_at"],
        last_error=row["last_error"],
    )
