"""Roles: what a principal may do in its tenant. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What a principal may do; each role may do all that those before it may."""

    VIEWER = "viewer"
    """Looks at jobs and their results."""
    SUBMITTER = "submitter"
    """Submits, cancels and retries jobs, too."""
    ADMIN = "admin"
    """Manages the tenant's tokens and webhooks, too."""


_RANKS: Final = {role: rank for rank, role in enumerate(Role)}


def allows(role: Role, needed: Role) -> bool:
    """Whether somebody with `role` may do what takes `needed`."""
    return _RANKS[role] >= _RANKS[needed]


def highest(roles: list[Role]) -> Role | None:
    """The one that may do most; None of none."""
    return max(roles, key=_RANKS.__getitem__, default=None)
