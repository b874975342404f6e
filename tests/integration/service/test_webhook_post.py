"""One POST of a webhook, over real sockets: where it goes, where it does not, and how long it waits."""

from __future__ import annotations

import datetime as dt
import ssl
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from webhook_receiver import Receiver, status, webhook_receiver

from service.webhooks.addresses import AddressPolicy, IPAddress
from service.webhooks.post import DeliveryError, Poster

LOCAL = AddressPolicy((ip_network("127.0.0.0/8"),), allow_http=True)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with webhook_receiver() as made:
        yield made


def test_what_arrives(receiver: Receiver) -> None:
    Poster(LOCAL, 10).post(receiver.url + "?a=b%20c", {"webhook-id": "msg_1"}, b'{"x": 1}')
    (heard,) = receiver.heard
    assert (heard.path, heard.body) == ("/hook?a=b%20c", b'{"x": 1}')
    assert heard.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert heard.headers["user-agent"] == "hush-webhooks/1"
    assert heard.headers["webhook-id"] == "msg_1"


@pytest.mark.parametrize("code", [301, 302, 307, 400, 404, 410, 429, 500, 503])
def test_anything_but_2xx_is_no_delivery(receiver: Receiver, code: int) -> None:
    with webhook_receiver() as elsewhere:
        receiver.answers.append(status(code, Location=elsewhere.url))
        with pytest.raises(DeliveryError, match=f"answered {code}"):
            Poster(LOCAL, 10).post(receiver.url, {}, b"{}")
        assert elsewhere.num_connections == 0


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "017700000001", "127.1"])
def test_this_machine_is_not_called_by_any_name(receiver: Receiver, host: str) -> None:
    with pytest.raises(DeliveryError, match="has no address that a webhook may call"):
        Poster(AddressPolicy(allow_http=True), 10).post(f"http://{host}:{receiver.port}/hook", {}, b"{}")
    assert receiver.num_connections == 0


def test_a_name_that_changes_its_mind_is_asked_once(receiver: Receiver) -> None:
    """DNS rebinding: the first answer is harmless, the next one leads to this machine."""
    asked: list[str] = []

    def resolve(host: str, port: int) -> Sequence[IPAddress]:
        asked.append(host)
        return [ip_address("127.0.0.2" if len(asked) == 1 else "127.0.0.1")]

    policy = AddressPolicy((ip_network("127.0.0.2/32"),), allow_http=True)
    with pytest.raises(DeliveryError, match="ConnectError"):  # nobody listens there: the receiver is at 127.0.0.1
        Poster(policy, 10, resolve).post(f"http://rebinds.test:{receiver.port}/", {}, b"{}")
    assert asked == ["rebinds.test"]
    assert receiver.num_connections == 0


def test_of_several_addresses_only_those_that_may_be_called_are(receiver: Receiver) -> None:
    policy = AddressPolicy((ip_network("127.0.0.1/32"),), allow_http=True)

    def resolve(host: str, port: int) -> Sequence[IPAddress]:
        return [ip_address(text) for text in ("10.0.0.1", "169.254.169.254", "::1", "127.0.0.1")]

    Poster(policy, 10, resolve).post(f"http://several.test:{receiver.port}/", {}, b"{}")
    assert receiver.heard[0].headers["host"] == f"several.test:{receiver.port}"


def drip(handler: BaseHTTPRequestHandler) -> None:
    """One byte now and then, for ever: no read times out."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(600):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.1)


def pour(handler: BaseHTTPRequestHandler) -> None:
    """A body without end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


def test_a_server_that_drips_is_left(receiver: Receiver) -> None:
    receiver.answers.append(drip)
    with pytest.raises(DeliveryError, match=r"no answer in time|timed out"):
        Poster(LOCAL, 1).post(receiver.url, {}, b"{}")


def test_an_answer_without_end_is_not_read(receiver: Receiver) -> None:
    receiver.answers.append(pour)
    Poster(LOCAL, 10).post(receiver.url, {}, b"{}")


@pytest.mark.parametrize("garbage", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 99999 X\r\n\r\n", b"\x16\x03\x01" * 50])
def test_what_is_no_http_is_no_delivery(receiver: Receiver, garbage: bytes) -> None:
    receiver.answers.append(lambda handler: handler.wfile.write(garbage) and None)
    with pytest.raises(DeliveryError):
        Poster(LOCAL, 10).post(receiver.url, {}, b"{}")


def certificate(folder: Path, name: str) -> Path:
    """A certificate for `name` that signs itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.pem"
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(*private))
    return file


def test_tls_asks_for_the_name_though_it_connects_to_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certificate(tmp_path, "hooks.test")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    poster = Poster(LOCAL, 10, lambda _host, _port: [ip_address("127.0.0.1")])
    with webhook_receiver(tls) as receiver:
        poster.post(f"https://hooks.test:{receiver.port}/hook", {}, b"{}")
        assert receiver.names == ["hooks.test"]
        assert receiver.heard[0].headers["host"] == f"hooks.test:{receiver.port}"
        with pytest.raises(DeliveryError, match="CERTIFICATE_VERIFY_FAILED"):
            poster.post(f"https://others.test:{receiver.port}/hook", {}, b"{}")
        assert len(receiver.heard) == 1
