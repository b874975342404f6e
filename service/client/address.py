"""Where a service is, and the token for it: as asked for, else from the environment, else from the home folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.client.errors import UnreachableError
from service.embedded.home import find_server, home_folder


@dataclass(frozen=True)
class Address:
    """A service's address, and the token for it; made by `address`."""

    url: str
    """Without a slash at the end."""
    token: str | None

    @property
    def headers(self) -> dict[str, str]:
        """What every request bears."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}


def address(url: str, token: str | None = None) -> Address:
    """Checks both; ValueError for what can be no address, or no token."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"url = {url!r}: must be the address of a service ({error})") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError(f"url = {url!r}: must be an address that begins with http:// or https://")
    token = (token or "").strip() or None
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("token: must be printable ASCII without spaces (it is not shown here)")
    return Address(url.rstrip("/"), token)


def find_address(environ: Mapping[str, str], url: str | None = None, home: Path | None = None) -> Address:
    """Of the service at `url`, else HUSH_URL, else the one that serves `home`; UnreachableError if none does.

    The token is HUSH_TOKEN. Without it, the server of the home folder gets its own, which it left there for us, and
    nobody else gets anything.
    """
    url, token = url or environ.get("HUSH_URL") or None, environ.get("HUSH_TOKEN", "").strip()
    server = find_server(home_folder(home))
    if url is None and server is None:
        raise UnreachableError(
            f"no service runs on {home_folder(home)}; start one with: hush serve (or name another with --url)"
        )
    if server is not None and (url is None or address(url).url == server.url):
        return address(server.url, token or server.token)
    assert url is not None, "else the server is asked"
    return address(url, token)
