"""Tokens and tenants in both databases, and what has to be so before others than this machine are let in."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.access.exposure import check_exposure
from service.access.roles import Role
from service.access.tokens import LOCAL_NAME, is_good
from service.embedded.local_token import local_token
from service.jobs.records import TenantLimits
from service.settings import Settings
from service.store.database import migrate, open_engine
from service.store.tenants import Tenants
from service.store.tokens import NewToken, Tokens

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def test_a_token_is_found_until_the_end_of_time(engine: Engine) -> None:
    tokens = Tokens(engine)
    made, token = tokens.create(NewToken("t", "n", Role.VIEWER, NOW + timedelta(hours=1)), NOW)
    assert tokens.find(token) == made
    assert tokens.find(token[:-1]) is None
    assert tokens.find("") is None
    assert tokens.revoke(made.id, NOW, tenant="other") is None
    assert tokens.find(token) == made
    revoked = tokens.revoke(made.id, NOW, tenant="t")
    assert revoked is not None
    assert revoked.revoked_at == NOW
    assert tokens.revoke(made.id, NOW + timedelta(1)) == revoked, "it was revoked when it was"
    assert tokens.find(token) == revoked
    assert tokens.revoke("0" * 26, NOW) is None


def test_pages(engine: Engine) -> None:
    tokens = Tokens(engine)
    ids = [
        tokens.create(NewToken(tenant, "n", Role.VIEWER), NOW + timedelta(seconds=i))[0].id
        for i, tenant in enumerate(["a", "b", "a", "a"])
    ]
    assert [token.id for token in tokens.page("a", 10)] == [ids[3], ids[2], ids[0]]
    assert [token.id for token in tokens.page("a", 1, before_id=ids[3])] == [ids[2]]
    assert [token.id for token in tokens.page(None, 10)] == ids[::-1]


def test_this_machine_has_one_token(engine: Engine) -> None:
    tokens = Tokens(engine)
    local = NewToken("default", LOCAL_NAME, Role.ADMIN)
    _, others = tokens.create(NewToken("default", "n", Role.ADMIN), NOW)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: tokens.replace_local(local, NOW), range(4)))
    last = tokens.replace_local(local, NOW)
    found = {token: tokens.find(token) for token in [*made, last, others]}
    good = {token for token, record in found.items() if record is not None and is_good(record, NOW)}
    assert good == {last, others}


def test_whether_anybody_has_a_token(engine: Engine) -> None:
    tokens = Tokens(engine)
    tokens.replace_local(NewToken("default", LOCAL_NAME, Role.ADMIN), NOW)
    assert not tokens.any_good(NOW), "that of this machine lets in nobody else"
    tokens.create(NewToken("default", "n", Role.ADMIN, NOW), NOW)
    assert not tokens.any_good(NOW), "it has expired"
    made, _ = tokens.create(NewToken("default", "n", Role.VIEWER, NOW + timedelta(hours=1)), NOW)
    assert tokens.any_good(NOW)
    tokens.revoke(made.id, NOW)
    assert not tokens.any_good(NOW)


def test_limits_of_tenants(engine: Engine) -> None:
    tenants = Tenants(engine)
    before = tenants.limits()
    tenants.set_limits("vision", TenantLimits(2, 8))
    tenants.set_limits("audio", TenantLimits(None, 1))
    tenants.set_limits("vision", TenantLimits(3, None))
    assert tenants.limits() == {**before, "audio": TenantLimits(None, 1), "vision": TenantLimits(3, None)}


def test_each_start_has_its_own_token(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    engine = open_engine(settings.database)
    migrate(engine)
    first, second = local_token(settings), local_token(settings)
    of_first, of_second = Tokens(engine).find(first), Tokens(engine).find(second)
    engine.dispose()
    assert of_first is not None
    assert of_second is not None
    assert not is_good(of_first, datetime.now(UTC))
    assert is_good(of_second, datetime.now(UTC))
    assert (of_second.tenant, of_second.role) == ("default", Role.ADMIN)


def test_who_may_be_let_in_from_other_machines(engine: Engine, database_url: str) -> None:
    settings = Settings(database_url=database_url)
    check_exposure(settings, "127.0.0.1")
    with pytest.raises(ValueError, match="nobody has a token") as refused:
        check_exposure(settings, "0.0.0.0")
    assert "hush token create" in str(refused.value)
    check_exposure(Settings(database_url=database_url, oidc_issuer="https://id.example", oidc_audience="h"), "0.0.0.0")
    Tokens(engine).create(NewToken("default", "n", Role.VIEWER), datetime.now(UTC))
    check_exposure(settings, "0.0.0.0")
    with pytest.raises(ValueError, match="HUSH_RAY_TOKEN holds a well-known secret"):
        check_exposure(Settings.model_validate({"database_url": database_url, "ray_token": "changeme"}), "::")
