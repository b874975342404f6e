"""Principal: who asks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from service.access.roles import Role

DEFAULT_TENANT: Final = "default"
"""The tenant that always exists."""
TENANT_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,62}$"
"""What a tenant's name looks like."""


@dataclass(frozen=True)
class Principal:
    """Somebody whose bearer token is good."""

    tenant: str
    """All that it sees, and all that it makes, is this tenant's."""
    role: Role
    name: str
    """For people: that of the token, or the subject of the identity provider."""
    id: str
    """The same at each request, and nobody else's: `token:<id>` or `oidc:<subject>`. Its requests are counted by it."""


def is_tenant(name: str) -> bool:
    """Whether `name` could be a tenant's."""
    return re.fullmatch(TENANT_PATTERN, name) is not None and not name.endswith("\n")
