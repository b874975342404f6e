"""API tokens in SQL. Kept is the SHA-256 of a token; the token itself is shown once, to whoever made it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, RowMapping, insert, select, update

from service.access.roles import Role
from service.access.tokens import LOCAL_NAME, RANDOM_BYTES, TokenRecord, new_token
from service.jobs.ids import new_id
from service.store.database import writing
from service.store.tables import tokens
from service.store.writes import hash_token


@dataclass(frozen=True)
class NewToken:
    """A token to be made."""

    tenant: str
    name: str
    role: Role
    expires_at: datetime | None = None
    """None: it is good until it is revoked."""


class Tokens:
    """The tokens of one database."""

    def __init__(self, engine: Engine) -> None:
        """`engine` comes from `database.open_engine`."""
        self._engine = engine
        self._writing = writing(engine)

    def create(self, new: NewToken, now: datetime) -> tuple[TokenRecord, str]:
        """A new token, and what its bearer has to send: nobody can read it again."""
        with self._writing.begin() as connection:
            return _insert(connection, new, now)

    def replace_local(self, new: NewToken, now: datetime) -> str:
        """The token of this machine, and no other: those of before are revoked."""
        assert new.name == LOCAL_NAME
        old = (tokens.c.name == LOCAL_NAME, tokens.c.revoked_at.is_(None))
        with self._writing.begin() as connection:
            connection.execute(update(tokens).where(*old).values(revoked_at=now))
            return _insert(connection, new, now)[1]

    def find(self, token: str) -> TokenRecord | None:
        """Whose token it is, good or not; None if it is nobody's.

        Found by its hash, so how long the look takes says nothing of any token.
        """
        with self._engine.begin() as connection:
            row = connection.execute(select(tokens).where(tokens.c.hash == hash_token(token))).mappings().first()
            return None if row is None else _record(row)

    def page(self, tenant: str | None, limit: int, before_id: str | None = None) -> list[TokenRecord]:
        """A tenant's newest tokens, or everybody's, at most `limit`, older than `before_id`."""
        query = select(tokens).order_by(tokens.c.id.desc()).limit(limit)
        if tenant is not None:
            query = query.where(tokens.c.tenant == tenant)
        if before_id is not None:
            query = query.where(tokens.c.id < before_id)
        with self._engine.begin() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]

    def revoke(self, token_id: str, now: datetime, tenant: str | None = None) -> TokenRecord | None:
        """Make a token worthless, for ever; None if there is none, or it is not this tenant's."""
        this = [tokens.c.id == token_id] + ([] if tenant is None else [tokens.c.tenant == tenant])
        with self._writing.begin() as connection:
            connection.execute(update(tokens).where(*this, tokens.c.revoked_at.is_(None)).values(revoked_at=now))
            row = connection.execute(select(tokens).where(*this)).mappings().first()
            return None if row is None else _record(row)

    def any_good(self, now: datetime) -> bool:
        """Whether somebody has a token that is good, other than the one of this machine."""
        good = (
            tokens.c.name != LOCAL_NAME,
            tokens.c.revoked_at.is_(None),
            tokens.c.expires_at.is_(None) | (tokens.c.expires_at > now),
        )
        with self._engine.begin() as connection:
            return connection.execute(select(tokens.c.id).where(*good).limit(1)).first() is not None


def _insert(connection: Connection, new: NewToken, now: datetime) -> tuple[TokenRecord, str]:
    token, token_id = new_token(secrets.token_bytes(RANDOM_BYTES)), new_id(now, secrets.randbits(80))
    values = {
        "id": token_id,
        "tenant": new.tenant,
        "name": new.name,
        "role": new.role,
        "hash": hash_token(token),
        "created_at": now,
        "expires_at": new.expires_at,
    }
    connection.execute(insert(tokens).values(values))
    return TokenRecord(token_id, new.tenant, new.name, new.role, now, new.expires_at, None), token


def _record(row: RowMapping) -> TokenRecord:
    return TokenRecord(
        id=row["id"],
        tenant=row["tenant"],
        name=row["name"],
        role=Role(row["role"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
