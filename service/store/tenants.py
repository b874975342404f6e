"""Tenants in SQL: those that have limits of their own. Any other exists as soon as somebody has a token for it."""

from __future__ import annotations

from sqlalchemy import Engine, insert, select, update

from service.jobs.records import TenantLimits
from service.store.database import writing
from service.store.tables import tenants


class Tenants:
    """The tenants of one database."""

    def __init__(self, engine: Engine) -> None:
        """`engine` comes from `database.open_engine`."""
        self._engine = engine
        self._writing = writing(engine)

    def set_limits(self, name: str, limits: TenantLimits) -> None:
        """From the next look at the queue on; running jobs go on."""
        values = {"max_running_jobs": limits.max_running_jobs, "max_workers": limits.max_workers}
        with self._writing.begin() as connection:
            changed = connection.execute(update(tenants).where(tenants.c.name == name).values(values)).rowcount
            if not changed:
                connection.execute(insert(tenants).values(name=name, **values))

    def limits(self) -> dict[str, TenantLimits]:
        """Of each tenant that was given some, by name."""
        query = select(tenants).order_by(tenants.c.name)
        with self._engine.begin() as connection:
            rows = connection.execute(query).mappings()
            return {row["name"]: TenantLimits(row["max_running_jobs"], row["max_workers"]) for row in rows}
