"""Job ids sort by time, are unique, and nothing else passes for one."""

import secrets
from datetime import UTC, datetime, timedelta

import pytest

from service.jobs.ids import is_id, new_id

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_ids_sort_by_time() -> None:
    ids = [new_id(NOW + timedelta(milliseconds=ms), secrets.randbits(80)) for ms in (0, 1, 2, 1000, 10**10)]
    assert ids == sorted(ids)
    assert all(is_id(job_id) for job_id in ids)


def test_ids_of_one_moment_differ() -> None:
    assert len({new_id(NOW, secrets.randbits(80)) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "text", ["", "0" * 25, "0" * 27, "0" * 25 + "\n", "0" * 26 + "\n", "l" * 26, "A" * 26, "../" * 9]
)
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)
