"""The two clients offer the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from service.client import AsyncClient, Client

RENAMED = {"__enter__": "__aenter__", "__exit__": "__aexit__", "close": "aclose"}


def face(client: type) -> dict[str, Callable[..., object]]:
    names = [
        name for name in vars(client) if not name.startswith("_") or name in {"__init__", "__enter__", "__aenter__"}
    ]
    return {name: getattr(client, name) for name in names}


def test_both_have_the_same_methods_with_the_same_words() -> None:
    here, there = face(Client), face(AsyncClient)
    assert {RENAMED.get(name, name) for name in here} == set(there)
    for name, method in here.items():
        other = there[RENAMED.get(name, name)]
        assert str(inspect.signature(other)).replace("AsyncIterator", "Iterator") == str(inspect.signature(method)), (
            name
        )
        assert other.__doc__ == method.__doc__, name
        if "Iterator" not in str(inspect.signature(method)) and name not in {"__init__", "from_environment"}:
            assert inspect.iscoroutinefunction(other), name
