"""Leases: at most one process does a thing at a time, and one that was too slow to know better is fenced off.

A lease bears a number that rises with each holder. Whoever writes as a holder shows it (`writes.hold`), in the
transaction of the write: so a process that slept through its lease's end, whatever its clock says, can change nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Engine, case, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from service.jobs.records import Fence
from service.store.database import writing
from service.store.tables import leases


class Leases:
    """The leases of one database."""

    def __init__(self, engine: Engine) -> None:
        """`engine` comes from `database.open_engine`."""
        self._writing = writing(engine)

    def acquire(self, name: str, holder: str, now: datetime, ttl_s: float) -> Fence | None:
        """Take or renew a lease for `ttl_s` from now; None while another holder's has not expired."""
        until = now + timedelta(seconds=ttl_s)
        try:
            with self._writing.begin() as connection:
                free = or_(leases.c.holder == holder, leases.c.expires_at <= now)
                change = update(leases).where(leases.c.name == name, free)
                # A renewal keeps the number; a new holder gets the next.
                token = leases.c.token + case((leases.c.holder == holder, 0), else_=1)
                values = {"holder": holder, "token": token, "expires_at": until}
                row = connection.execute(change.values(values).returning(leases.c.token)).first()
                if row is not None:
                    return Fence(name, row[0])
                if connection.execute(select(leases.c.name).where(leases.c.name == name)).first() is not None:
                    return None
                connection.execute(insert(leases).values(name=name, holder=holder, token=1, expires_at=until))
                return Fence(name, 1)
        except IntegrityError:
            return None  # PostgreSQL only: another process made the row between our look and our insert

    def release(self, fence: Fence, now: datetime) -> None:
        """Let the next process have it at once; nothing if it is another's by now."""
        this = (leases.c.name == fence.name, leases.c.token == fence.token)
        with self._writing.begin() as connection:
            connection.execute(update(leases).where(*this).values(expires_at=now))
