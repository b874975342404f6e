"""Which addresses a webhook may call."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from service.webhooks.addresses import AddressPolicy, may_call, parse_url

STRICT = AddressPolicy()
PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "2002:5db8:d822::1", "::ffff:8.8.8.8"]
NOT_PUBLIC = [
    "127.0.0.1",
    "127.8.9.10",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.5.4",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fd00:ec2::254",
    "fc00::1",
    "ff02::1",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_the_public_internet_may_be_called(address: str) -> None:
    assert may_call(ip_address(address), STRICT)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_nothing_else_may(address: str) -> None:
    assert not may_call(ip_address(address), STRICT)


def test_a_network_that_the_settings_allow() -> None:
    policy = AddressPolicy((ip_network("10.1.0.0/16"), ip_network("fd00::/8")))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "8.8.8.8"):
        assert may_call(ip_address(address), policy)
    for address in ("10.2.0.1", "127.0.0.1", "::1", "::ffff:10.2.0.1"):
        assert not may_call(ip_address(address), policy)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://example.org/", "must start with https://"),
        ("ftp://example.org/", "must start with https://"),
        ("example.org/hook", "must start with https://"),
        ("", "must start with https://"),
        ("https:///hook", "must name a host"),
        ("https://example.org:0/", "a port from 1 to 65535"),
        ("https://example.org:99999/", "a port from 1 to 65535"),
        ("https://example.org:x/", "is no address"),
        ("https://user:secret@example.org/", "neither user nor password"),
        ("https://example.org/#part", "neither user nor password"),
        ("https://127.0.0.1/", "must not lead to this machine"),
        ("https://[::1]/", "must not lead to this machine"),
        ("https://[::ffff:169.254.169.254]/", "must not lead to this machine"),
        ("https://169.254.169.254/latest/meta-data", "must not lead to this machine"),
        ("https://example.org/\x00", "is no address"),
        ("https://example.org/\ud800", "is no address"),
        ("https://exa mple.org/", "must name a host"),
        ("https://" + "a" * 3000, "at most 2000 characters"),
    ],
)
def test_urls_that_are_refused(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_url(url, STRICT)


def test_urls_that_are_taken() -> None:
    for url in (
        "https://example.org",
        "https://example.org:8443/a?b=c",
        "https://bücher.example/x",
        "HTTPS://8.8.8.8/",
    ):
        assert parse_url(url, STRICT).scheme == "https"
    lenient = AddressPolicy((ip_network("127.0.0.0/8"),), allow_http=True)
    assert parse_url("http://127.0.0.1:8080/hook", lenient).port == 8080
