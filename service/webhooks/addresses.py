"""Which addresses a webhook may call. Pure.

Whoever registers a webhook has the service send a request of its own. So it calls the public internet only: nothing on
this machine, nothing in the network around it, not the cloud's metadata service; unless the settings allow a network.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import httpx

from service.settings import Settings

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

MAX_URL_CHARS = 2000
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")


@dataclass(frozen=True)
class AddressPolicy:
    """What the operator allows beyond https to the public internet."""

    networks: Sequence[IPNetwork] = ()
    """May be called although they are not public."""
    allow_http: bool = False


def policy_of(settings: Settings) -> AddressPolicy:
    """What the settings allow."""
    return AddressPolicy(settings.webhook_allowed_networks, settings.webhook_allow_http)


def may_call(address: IPAddress, policy: AddressPolicy) -> bool:
    """Whether a webhook may be sent to this address."""
    inner = None
    if isinstance(address, IPv6Address):
        inner = address.sixtofour
        address = address.ipv4_mapped or address
    if any(address in network for network in policy.networks):
        return True
    return _is_public(address) and (inner is None or _is_public(inner))


def parse_url(text: str, policy: AddressPolicy) -> httpx.URL:
    """The address of a webhook; ValueError says what is wrong with it. Names are looked up only when it is called."""
    if len(text) > MAX_URL_CHARS:
        raise ValueError(f"must have at most {MAX_URL_CHARS} characters")
    try:
        url = httpx.URL(text)
        port_is_one = url.port is None or 1 <= url.port <= 65535
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"is no address: {error}") from None
    schemes = ("https", "http") if policy.allow_http else ("https",)
    if url.scheme not in schemes:
        raise ValueError(f"must start with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if not _HOST.fullmatch(url.raw_host) or not port_is_one:
        raise ValueError("must name a host, and a port from 1 to 65535 if any")
    if url.userinfo or url.fragment:
        raise ValueError("must have neither user nor password nor a part after #")
    if (address := _literal(url.host)) is not None and not may_call(address, policy):
        raise ValueError("must not lead to this machine or into a private network; HUSH_WEBHOOK_ALLOWED_NETWORKS may")
    return url


def _literal(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_public(address: IPAddress) -> bool:
    if isinstance(address, IPv6Address) and address.is_site_local:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved
