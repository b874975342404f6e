"""What a caller of the client should expect, and how an answer becomes one of these.

HushError                     what a caller of this client should expect
├── UnreachableError          nobody answers at this address
├── UnexpectedAnswerError     somebody answers, but not the service
└── ProblemAnswerError        the service refuses, with its Problem
    ├── UnauthorizedError     401: no token, or one that is wrong or expired
    ├── ForbiddenError        403: the token's role does not allow it
    ├── NotFoundError         404
    ├── ConflictError         409
    ├── InvalidRequestError   422: one entry a field in `problem.errors`
    ├── RateLimitedError      429: too many requests, also after waiting
    └── UnavailableError      503: a part of the service is away, also after waiting
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import httpx
import httpx_sse
from pydantic import ValidationError

from service.schemas import Problem

GATEWAY_STATUSES: Final = frozenset(
    {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)
"""What a proxy answers when it does not reach the service."""


class HushError(Exception):
    """What a caller of this client should expect."""


class UnreachableError(HushError):
    """Nobody answers at this address."""


class UnexpectedAnswerError(HushError):
    """Somebody answers, but not the service."""


class ProblemAnswerError(HushError):
    """The service refuses, and says why."""

    def __init__(self, problem: Problem) -> None:
        """Its text is a line for each wrong field, or the detail."""
        self.problem = problem
        fields = problem.errors or []
        lines = [f"{f.field}{'' if f.value is None else f' = {f.value}'}: {f.message}" for f in fields]
        super().__init__("\n".join(lines) or problem.detail or problem.title)


class UnauthorizedError(ProblemAnswerError):
    """The service asks for a token, or for another one than this."""


class ForbiddenError(ProblemAnswerError):
    """The token is good, but its role does not allow this."""


class NotFoundError(ProblemAnswerError):
    """There is no such thing, or it is another tenant's."""


class ConflictError(ProblemAnswerError):
    """It cannot be done in the present state."""


class InvalidRequestError(ProblemAnswerError):
    """The request itself is wrong; `problem.errors` says which fields."""


class RateLimitedError(ProblemAnswerError):
    """Too many requests; it was waited for as long as `Retry` allows."""


class UnavailableError(ProblemAnswerError):
    """A part of the service is away; it was waited for as long as `Retry` allows."""


_ERRORS: Final[Mapping[int, type[ProblemAnswerError]]] = {
    HTTPStatus.UNAUTHORIZED: UnauthorizedError,
    HTTPStatus.FORBIDDEN: ForbiddenError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.CONFLICT: ConflictError,
    HTTPStatus.UNPROCESSABLE_ENTITY: InvalidRequestError,
    HTTPStatus.TOO_MANY_REQUESTS: RateLimitedError,
    HTTPStatus.SERVICE_UNAVAILABLE: UnavailableError,
}


def unanswered(url: str, error: httpx.RequestError) -> HushError:
    """What became of a request that brought no answer, or none that can be read."""
    what = str(error) or type(error).__name__
    if isinstance(error, httpx.DecodingError | httpx_sse.SSEError):
        return unexpected(url, what)
    return _unreachable(url, what)


def refusal(url: str, response: httpx.Response) -> HushError:
    """What an answer that is no success says; its body must have been read."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        if response.status_code in GATEWAY_STATUSES:
            return _unreachable(url, f"a proxy before it answers {response.status_code} {response.reason_phrase}")
        return unexpected(url, f"{response.request.method} {response.request.url.path}: {response.status_code}")
    return _ERRORS.get(problem.status, ProblemAnswerError)(problem)


def unexpected(url: str, what: str) -> UnexpectedAnswerError:
    """Something at `url` answered what the service never does."""
    return UnexpectedAnswerError(
        f"{url} answers, but not as Hush does ({what}); is it another program, or another version?"
    )


def _unreachable(url: str, what: str) -> UnreachableError:
    return UnreachableError(f"nobody answers at {url} ({what}); start the service with: hush serve")
