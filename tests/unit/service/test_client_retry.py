"""What is sent again and what is not, and when."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
import httpx_sse
import pytest

from service.client.retry import Outcome, Patience, Retry, asked_wait_s, may_repeat

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("outcome", "reading", "writing"),
    [
        (httpx.Response(200), False, False),
        (httpx.Response(307), False, False),
        (httpx.Response(401), False, False),
        (httpx.Response(409), False, False),
        (httpx.Response(422), False, False),
        (httpx.Response(429), True, True),
        (httpx.Response(500), False, False),
        (httpx.Response(502), True, False),
        (httpx.Response(503), True, False),
        (httpx.Response(504), True, False),
        (httpx.ConnectError("refused"), True, True),
        (httpx.ConnectTimeout("no answer"), True, True),
        (httpx.PoolTimeout("all in use"), True, True),
        (httpx.ReadError("reset"), True, False),
        (httpx.WriteError("reset"), True, False),
        (httpx.ReadTimeout("silent"), True, False),
        (httpx.RemoteProtocolError("cut"), True, False),
        (httpx.DecodingError("not gzip"), False, False),
        (httpx.UnsupportedProtocol("ftp"), False, False),
        (httpx_sse.SSEError("text/html"), False, False),
    ],
    ids=lambda value: f"{value.status_code}" if isinstance(value, httpx.Response) else type(value).__name__,
)
def test_only_what_cannot_happen_twice_is_sent_again(outcome: Outcome, reading: bool, writing: bool) -> None:
    assert may_repeat(outcome, repeatable=True) is reading
    assert may_repeat(outcome, repeatable=False) is writing


@pytest.mark.parametrize(
    ("text", "asked_s"),
    [
        ("0", 0),
        ("7", 7),
        ("Thu, 01 Jan 2026 12:00:09 GMT", 9),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        ("Thu, 01 Jan 2026 12:00:09 -0000", 9),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("²", None),
        ("1.5", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, asked_s: float | None) -> None:
    headers = {"Retry-After": text.encode()}
    assert asked_wait_s(httpx.Response(503, headers=headers), NOW) == asked_s


def test_without_retry_after_nothing_is_asked() -> None:
    assert asked_wait_s(httpx.Response(503), NOW) is None
    assert asked_wait_s(httpx.ReadError("reset"), NOW) is None


def test_who_asks_for_too_long_is_not_waited_for() -> None:
    patience = Patience(Retry(), 30, 5, clock=lambda: 0.0, jitter=lambda: 0.0)
    assert patience.wait_s(httpx.Response(429, headers={"Retry-After": "30"}), repeatable=True) == 30
    assert patience.wait_s(httpx.Response(429, headers={"Retry-After": "31"}), repeatable=True) is None


def test_who_does_not_listen_may_be_waited_for_less() -> None:
    patience = Patience.with_request(Retry(first_wait_s=10, connect_max_s=1))
    assert patience.wait_s(httpx.ConnectError("refused"), repeatable=True) is None
    assert patience.wait_s(httpx.ReadError("reset"), repeatable=True) is not None
    patience.renew()
    assert patience.wait_s(httpx.ConnectError("refused"), repeatable=True) is not None


def test_a_stream_that_brings_something_is_waited_for_anew() -> None:
    retry = Retry(first_wait_s=1, max_wait_s=60, stream_max_s=10)
    times = iter([0.0, 0.0, 0.5, 3600.0, 3601.0, 3601.0])
    patience = Patience(retry, 10, 10, clock=lambda: next(times), jitter=lambda: 0.0)
    lost = httpx.RemoteProtocolError("cut")
    assert patience.wait_s(lost, repeatable=True) == 0.5
    assert patience.wait_s(lost, repeatable=True) == 1
    assert patience.wait_s(lost, repeatable=True) is None
    patience.renew()
    assert patience.wait_s(lost, repeatable=True) == 0.5
