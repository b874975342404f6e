"""How a delivery is signed, and when it is tried again."""

from __future__ import annotations

import base64
import hmac
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from service.webhooks.schedule import DELAYS_S, JITTER, MAX_TRIES, outcome
from service.webhooks.signature import new_secret, signed_headers

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_signature_of_the_specification() -> None:
    """The example of the Standard Webhooks specification, which its libraries verify."""
    headers = signed_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(st.binary(min_size=32, max_size=32), st.binary(), st.integers(0, 2**33))
def test_a_receiver_verifies_it(random: bytes, body: bytes, timestamp_s: int) -> None:
    secret = new_secret(random)
    assert secret.startswith("whsec_")
    headers = signed_headers(secret, "msg_1", timestamp_s, body)
    version, _, given_signature = headers["webhook-signature"].partition(",")
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    assert version == "v1"
    assert base64.b64decode(given_signature) == hmac.digest(random, signed, "sha256")


def test_what_is_heard_is_not_tried_again() -> None:
    heard = outcome(3, None, NOW, 0.5)
    assert (heard.num_tries, heard.delivered_at, heard.next_try_at, heard.error) == (4, NOW, None, None)


@given(st.floats(0, 1, exclude_max=True))
def test_what_fails_is_tried_eight_times_over_hours(random: float) -> None:
    now, num_tries, waits = NOW, 0, []
    while True:
        tried = outcome(num_tries, "answered 500", now, random)
        assert tried.delivered_at is None
        assert tried.error == "answered 500"
        assert tried.num_tries == num_tries + 1
        if tried.next_try_at is None:
            break
        waits.append((tried.next_try_at - now).total_seconds())
        now, num_tries = tried.next_try_at, tried.num_tries
    assert len(waits) + 1 == MAX_TRIES == 8
    for wait_s, delay_s in zip(waits, DELAYS_S, strict=True):
        assert delay_s <= wait_s <= delay_s * (1 + JITTER)
    assert timedelta(hours=8) < now - NOW < timedelta(hours=11)
