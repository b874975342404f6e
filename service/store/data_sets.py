"""Registered data sets in SQL, each with how its last check went."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, RowMapping, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.data_set_schemas import CheckView, DataSetSummary
from service.jobs.ids import new_id
from service.store.database import writing
from service.store.tables import data_sets

STALE_S = 600
"""A check that did not go on for so long is not running any more: its process was killed."""


class NameTakenError(Exception):
    """The tenant has a data set of this name."""


@dataclass(frozen=True)
class DataSetRecord:
    """A data set as it is stored."""

    id: str
    tenant: str
    name: str
    manifest: str
    summary: DataSetSummary
    check: CheckView | None
    created_at: datetime


class DataSets:
    """The data sets of one database."""

    def __init__(self, engine: Engine) -> None:
        """`engine` comes from `database.open_engine`."""
        self._engine = engine
        self._writing = writing(engine)

    def create(self, tenant: str, name: str, manifest: str, summary: DataSetSummary, now: datetime) -> DataSetRecord:
        """Register one; NameTakenError."""
        values = {
            "id": new_id(now, secrets.randbits(80)),
            "tenant": tenant,
            "name": name,
            "manifest": manifest,
            "summary": summary.model_dump(mode="json"),
            "created_at": now,
        }
        try:
            with self._writing.begin() as connection:
                row = connection.execute(insert(data_sets).values(values).returning(data_sets)).mappings().one()
                return _record(row)
        except IntegrityError:
            raise NameTakenError(name) from None

    def find(self, tenant: str, name: str) -> DataSetRecord | None:
        """A tenant's data set of this name, or None."""
        query = select(data_sets).where(data_sets.c.tenant == tenant, data_sets.c.name == name)
        with self._engine.begin() as connection:
            row = connection.execute(query).mappings().first()
            return None if row is None else _record(row)

    def page(self, tenant: str, limit: int, before_id: str | None = None) -> list[DataSetRecord]:
        """A tenant's newest data sets, at most `limit`, older than `before_id`."""
        query = select(data_sets).where(data_sets.c.tenant == tenant).order_by(data_sets.c.id.desc()).limit(limit)
        if before_id is not None:
            query = query.where(data_sets.c.id < before_id)
        with self._engine.begin() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]

    def begin_check(self, data_set_id: str, now: datetime) -> CheckView | None:
        """A check that runs from now on; None if one runs already."""
        with self._writing.begin() as connection:
            known = _lock(connection, data_set_id).check
            if known is not None and known.status == "running" and now - known.updated_at < timedelta(seconds=STALE_S):
                return None
            check = CheckView(status="running", started_at=now, updated_at=now)
            _put(connection, data_set_id, check)
            return check

    def keep_check(self, data_set_id: str, check: CheckView) -> bool:
        """Keep how a check goes on; False if another one has begun since, whose word counts."""
        with self._writing.begin() as connection:
            known = _lock(connection, data_set_id).check
            if known is None or known.started_at != check.started_at:
                return False
            _put(connection, data_set_id, check)
            return True


def _lock(connection: Connection, data_set_id: str) -> DataSetRecord:
    """A data set that is there, and that nobody else changes before this transaction ends."""
    this = select(data_sets).where(data_sets.c.id == data_set_id).with_for_update()
    return _record(connection.execute(this).mappings().one())


def _put(connection: Connection, data_set_id: str, check: CheckView) -> None:
    values = {"check": check.model_dump(mode="json")}
    connection.execute(update(data_sets).where(data_sets.c.id == data_set_id).values(values))


def _record(row: RowMapping) -> DataSetRecord:
    return DataSetRecord(
        id=row["id"],
        tenant=row["tenant"],
        name=row["name"],
        manifest=row["manifest"],
        summary=DataSetSummary.model_validate(row["summary"]),
        check=None if row["check"] is None else CheckView.model_validate(row["check"]),
        created_at=row["created_at"],
    )
