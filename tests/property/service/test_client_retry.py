"""However a service fails: a client's waits are bounded, each and together, and clients part from each other."""

from __future__ import annotations

import httpx
from hypothesis import given
from hypothesis import strategies as st

from service.client.retry import Outcome, Patience, Retry, wait_s

RETRIES = st.builds(
    Retry,
    max_s=st.floats(0, 600),
    stream_max_s=st.floats(0, 600),
    first_wait_s=st.floats(1e-3, 10),
    max_wait_s=st.floats(1e-3, 60),
)
JITTER = st.floats(0, 1, exclude_max=True)
OUTCOMES: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(httpx.Response, st.sampled_from([200, 404, 429, 500, 502, 503, 504])),
    st.builds(
        lambda status, s: httpx.Response(status, headers={"Retry-After": str(s)}),
        st.sampled_from([429, 503]),
        st.integers(0, 10**9),
    ),
    st.builds(lambda kind: kind("lost"), st.sampled_from([httpx.ConnectError, httpx.ReadTimeout, httpx.ReadError])),
)


@given(RETRIES, st.integers(1, 10**6), JITTER)
def test_a_wait_is_half_to_all_of_a_backoff_that_doubles(retry: Retry, num_failures: int, jitter: float) -> None:
    longest = wait_s(retry, num_failures, None, 1.0)
    assert longest / 2 <= wait_s(retry, num_failures, None, jitter) <= longest <= retry.max_wait_s
    assert longest <= wait_s(retry, num_failures + 1, None, 1.0) <= 2 * longest


@given(RETRIES, st.integers(1, 10**6), st.floats(0, 1e9), JITTER)
def test_who_asks_for_a_wait_gets_it(retry: Retry, num_failures: int, asked_s: float, jitter: float) -> None:
    backoff = wait_s(retry, num_failures, None, jitter)
    assert max(asked_s, backoff) <= wait_s(retry, num_failures, asked_s, jitter)
    assert wait_s(retry, num_failures, asked_s, jitter) <= max(asked_s + retry.first_wait_s, backoff)


@given(RETRIES, st.lists(st.tuples(OUTCOMES, st.floats(0, 60), JITTER), max_size=40), st.booleans())
def test_all_waits_together_are_bounded(
    retry: Retry, tries: list[tuple[Outcome, float, float]], repeatable: bool
) -> None:
    """`tries`: what became of each, how long it took, and chance."""
    now = 1000.0
    chance = iter([jitter for _, _, jitter in tries])
    patience = Patience(retry, retry.max_s, retry.max_s, clock=lambda: now, jitter=lambda: next(chance))
    failed_at: float | None = None
    for outcome, took_s, _ in tries:
        now += took_s
        pause_s = patience.wait_s(outcome, repeatable=repeatable)
        if pause_s is None:
            break
        failed_at = now if failed_at is None else failed_at
        now += pause_s
        assert pause_s >= 0
        assert now - failed_at <= retry.max_s * (1 + 1e-9)
        assert repeatable or isinstance(outcome, httpx.ConnectError) or getattr(outcome, "status_code", 0) == 429
