"""A request and how its answer is read, apart from sending it: what the sync and the async client share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Generic, Literal, TypeVar

import httpx
import httpx_sse
from pydantic import ValidationError

from service.client.errors import HushError, refusal, unanswered, unexpected
from service.client.retry import Outcome

TIMEOUT_S: Final = 30.0
STREAM_SILENCE_S: Final = 45.0
"""A stream that is silent for longer is dead: the service sends a comment every 15 s."""

END: Final = "end"
"""The event of a stream's last message."""

Method = Literal["GET", "POST", "DELETE"]
Params = Mapping[str, str | int | None]
"""Of a query; None is left out."""

_Answer = TypeVar("_Answer")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Call(Generic[_Answer]):
    """One request, and how the body of its answer is read."""

    method: Method
    path: str
    read: Callable[[bytes], _Answer]
    """ValidationError if the body is not what the service answers."""
    params: Params = field(default_factory=dict)
    body: bytes | None = None
    """JSON."""
    key: str | None = None
    """Idempotency-Key."""
    repeatable: bool = True
    """Whether sending it twice does nothing twice."""

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """As `http` sends it."""
        headers = {} if self.key is None else {"Idempotency-Key": self.key}
        if self.body is not None:
            headers["Content-Type"] = "application/json"
        return http.build_request(
            self.method, self.path, params=_given(self.params), content=self.body, headers=headers
        )

    def answer(self, url: str, outcome: Outcome) -> _Answer:
        """What the service at `url` answers, or the HushError that became of it."""
        if isinstance(outcome, httpx.RequestError) or not outcome.is_success:
            raise failure(url, outcome)
        try:
            return self.read(outcome.content)
        except ValidationError:
            raise unexpected(url, f"{self.method} {self.path}: {outcome.status_code}") from None


@dataclass(frozen=True)
class Pages(Generic[_Answer, _Item]):
    """A list that comes in pages."""

    first: Call[_Answer]
    items: Callable[[_Answer], Sequence[_Item]]
    more: Callable[[_Answer], Params | None]
    """Parameters of the next page; None after the last."""

    def after(self, page: _Answer) -> Call[_Answer] | None:
        """The call for the next page, if there is one."""
        more = self.more(page)
        return None if more is None else replace(self.first, params={**self.first.params, **more})


@dataclass
class Stream(Generic[_Item]):
    """Server-Sent Events that are taken up where they broke off."""

    path: str
    read: Callable[[httpx_sse.ServerSentEvent], _Item | None]
    """None for a message that is nothing to the caller; ValidationError for one that the service does not send."""
    params: Params = field(default_factory=dict)
    last_id: str | None = None
    ended: bool = False

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """As `http` sends it: from the newest message on that was seen."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self.last_id is not None:
            headers["Last-Event-ID"] = self.last_id
        timeout = httpx.Timeout(TIMEOUT_S, read=STREAM_SILENCE_S)
        return http.build_request("GET", self.path, params=_given(self.params), headers=headers, timeout=timeout)

    def take(self, url: str, message: httpx_sse.ServerSentEvent) -> _Item | None:
        """What a message from the service at `url` brings; remembers where the stream stands."""
        try:
            item = self.read(message)
        except ValidationError:
            raise unexpected(url, f"GET {self.path}: event {message.event!r}") from None
        self.last_id = message.id or self.last_id
        self.ended = message.event == END
        return item


def failure(url: str, outcome: Outcome) -> HushError:
    """The error that a request to the service at `url` became, when it is not sent again."""
    return unanswered(url, outcome) if isinstance(outcome, httpx.RequestError) else refusal(url, outcome)


def cut_off() -> httpx.RequestError:
    """What became of a stream that ended before its last message."""
    return httpx.RemoteProtocolError("the stream ended too early")


def _given(params: Params) -> dict[str, str | int]:
    return {key: value for key, value in params.items() if value is not None}
