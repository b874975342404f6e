"""The async client with the sync client's face, so that one list of cases drives both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from service.client import AsyncClient, Client, Retry

QUICK = Retry(max_s=20, first_wait_s=0.01, max_wait_s=0.1)
NOT_PATIENT = Retry(max_s=0)


class AwaitedClient:
    """Awaits each method of an AsyncClient in an event loop of its own thread."""

    def __init__(self, url: str, token: str | None = None, *, retry: Retry | None = None) -> None:
        self.url = url
        self._entering = start_blocking_portal()
        self._portal: BlockingPortal = self._entering.__enter__()
        self._client = AsyncClient(url, token, retry=retry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._portal.call(self._client.aclose)
        self._entering.__exit__(None, None, None)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: object, **named: object) -> object:
            made = getattr(self._client, name)(*args, **named)
            return self._iterate(made) if isinstance(made, AsyncIterator) else self._portal.call(_await, made)

        return call

    def _iterate(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._portal.call(anext, items)
                except StopAsyncIteration:
                    return
        finally:
            self._portal.call(items.aclose)  # type: ignore[attr-defined]  # all of AsyncClient's are generators


async def _await(made: Awaitable[object]) -> object:
    return await made


AnyClient = Client | AwaitedClient
Connect = Callable[..., AnyClient]
