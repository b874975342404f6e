"""Places at which a test can have this process killed, as if the power had gone just there.

`HUSH_FAILPOINT=launch_after_submit` kills it when it first passes there, `launch_after_submit:3` at the third time: by
SIGKILL, so that nothing is tidied up. Without it, passing costs a comparison.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from enum import StrEnum


class Failpoint(StrEnum):
    """Every place there is."""

    SUBMIT_BEFORE_COMMIT = "submit_before_commit"
    SUBMIT_AFTER_COMMIT = "submit_after_commit"
    """The job is stored; whoever sent it has no answer yet."""
    MOVE_BEFORE_EVENT = "move_before_event"
    """In the transaction of a change of state: the job's row is changed, its event is not there."""
    MOVE_AFTER_EVENT = "move_after_event"
    ATTEMPT_FILE_AFTER = "attempt_file_after"
    TOKEN_BEFORE = "token_before"  # noqa: S105 (a place, no secret)
    """The attempt's file is there; the store does not know its token."""
    TOKEN_AFTER = "token_after"  # noqa: S105
    LAUNCH_BEFORE_SUBMIT = "launch_before_submit"
    LAUNCH_AFTER_SUBMIT = "launch_after_submit"
    """The cluster has the attempt; the store does not know it yet."""
    HEARTBEAT_BEFORE_COMMIT = "heartbeat_before_commit"
    HEARTBEAT_AFTER_COMMIT = "heartbeat_after_commit"
    """What rank 0 said is stored; it has no answer yet, and will say it again."""
    RESULT_VERIFIED = "result_verified"
    """The result's checksums hold; the job does not know it yet."""
    CANCEL_AFTER_COMMIT = "cancel_after_commit"
    WEBHOOK_AFTER_SEND = "webhook_after_send"
    """The receiver has the delivery; the store does not know it yet."""


@dataclass
class _Armed:
    """The one place where this process dies, and how often it passes there until then."""

    place: Failpoint | None = None
    num_left: int = 0


_ARMED = _Armed()


def parse_failpoint(text: str) -> tuple[Failpoint, int]:
    """`name` or `name:n` -> the place, and at which passing; ValueError says what is allowed."""
    name, _, number = text.partition(":")
    if name not in set(Failpoint):
        raise ValueError(f"{name!r} is no failpoint; there are {', '.join(Failpoint)}")
    if number and not (number.isdecimal() and int(number) >= 1):
        raise ValueError(f"{number!r} must be a whole number of passings, at least 1")
    return Failpoint(name), int(number or 1)


def arm(text: str | None) -> None:
    """Have this process killed there; None: nowhere."""
    _ARMED.place, _ARMED.num_left = (None, 0) if text is None else parse_failpoint(text)


def failpoint(place: Failpoint) -> None:
    """Pass a place; the process ends here if it was armed so."""
    if place is not _ARMED.place:
        return
    _ARMED.num_left -= 1
    if _ARMED.num_left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
