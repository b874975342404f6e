"""Fields that every log line bears while something is being done: of which request, of which job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

Fields = Mapping[str, str | int | float]

_FIELDS: ContextVar[Fields] = ContextVar("log_fields", default=MappingProxyType({}))


def log_fields() -> Fields:
    """The fields now."""
    return _FIELDS.get()


def bind(fields: Fields) -> None:
    """Add fields for the rest of this thread or task, and for what it starts."""
    _FIELDS.set({**_FIELDS.get(), **fields})


@contextmanager
def bound(fields: Fields) -> Iterator[None]:
    """Add fields inside the block."""
    token = _FIELDS.set({**_FIELDS.get(), **fields})
    try:
        yield
    finally:
        _FIELDS.reset(token)
