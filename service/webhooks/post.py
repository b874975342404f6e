"""One POST to a webhook's server: to an address that was checked, within a time, its answer's status and no more.

A name is looked up once, and the connection goes to an address of that answer: a name that leads elsewhere the next
time it is asked gains nothing. TLS and the Host header still bear the name. Redirects are not followed, and proxies of
the environment are not used: both would choose another address.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import httpcore
import httpx

from service.webhooks.addresses import AddressPolicy, IPAddress, may_call

MAX_ERROR_CHARS: Final = 300
USER_AGENT: Final = "hush-webhooks/1"

Resolve = Callable[[str, int], Sequence[IPAddress]]


class DeliveryError(Exception):
    """The server was not told; the message says why, and nothing of the network around us."""


def resolve(host: str, port: int) -> Sequence[IPAddress]:
    """All addresses of a host."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"no address is known of {host}") from error
    return [ipaddress.ip_address(str(entry[4][0])) for entry in found]


class Poster:
    """Sends requests of webhooks. Safe to use from several threads."""

    def __init__(self, policy: AddressPolicy, timeout_s: float, resolve: Resolve = resolve) -> None:
        """`timeout_s` is for all of a request, from connecting to its answer's headers; looking up the name takes as
        long as the system's resolver does."""
        self._policy = policy
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._tls = ssl.create_default_context()

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> None:
        """DeliveryError unless the server answers 2xx."""
        try:
            status = self._status(httpx.URL(url), {**headers, "User-Agent": USER_AGENT}, body)
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as error:
            raise DeliveryError(f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]) from error
        if not 200 <= status < 300:
            raise DeliveryError(f"answered {status}")

    def _status(self, url: httpx.URL, headers: Mapping[str, str], body: bytes) -> int:
        origin = httpcore.Origin(url.raw_scheme, url.raw_host, url.port or {"https": 443, "http": 80}[url.scheme])
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        backend = _CheckedBackend(self._policy, self._resolve, time.monotonic() + self._timeout_s)
        with (
            httpcore.HTTPConnection(origin, ssl_context=self._tls, network_backend=backend) as connection,
            connection.stream("POST", target, headers=list(headers.items()), content=body) as response,
        ):
            return response.status


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to addresses that may be called, and ends everything at a deadline."""

    def __init__(self, policy: AddressPolicy, resolve: Resolve, deadline: float) -> None:
        self._policy = policy
        self._resolve = resolve
        self._deadline = deadline
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - ours is the deadline
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        allowed = [address for address in self._resolve(host, port) if may_call(address, self._policy)]
        if not allowed:
            raise httpcore.ConnectError(f"{host} has no address that a webhook may call")
        last: Exception = AssertionError("unreachable")
        for address in allowed:
            try:
                stream = self._plain.connect_tcp(
                    str(address), port, _left_s(self._deadline), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
                continue
            return _BoundedStream(stream, self._deadline)
        raise last


class _BoundedStream(httpcore.NetworkStream):
    """A connection on which a server that sends one byte now and then cannot keep us for ever."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - ours is the deadline
        return self._stream.read(max_bytes, _left_s(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - ours is the deadline
        self._stream.write(buffer, _left_s(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - ours is the deadline
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _left_s(self._deadline))
        return _BoundedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise httpcore.ReadTimeout("no answer in time")
    return left_s
