"""The service from Python: `Client`, and `AsyncClient` for asyncio, which differ in nothing but `await`.

    with Client("http://127.0.0.1:8900") as client:
        job = client.submit(spec)
        for happening in client.follow(job.id):
            print(happening)

A request that broke off is sent again where that cannot do anything twice; see `Retry`. What goes wrong is a HushError.
"""

from __future__ import annotations

from service.client.async_client import AsyncClient as AsyncClient
from service.client.errors import ConflictError as ConflictError
from service.client.errors import ForbiddenError as ForbiddenError
from service.client.errors import HushError as HushError
from service.client.errors import InvalidRequestError as InvalidRequestError
from service.client.errors import NotFoundError as NotFoundError
from service.client.errors import ProblemAnswerError as ProblemAnswerError
from service.client.errors import RateLimitedError as RateLimitedError
from service.client.errors import UnauthorizedError as UnauthorizedError
from service.client.errors import UnavailableError as UnavailableError
from service.client.errors import UnexpectedAnswerError as UnexpectedAnswerError
from service.client.errors import UnreachableError as UnreachableError
from service.client.retry import Retry as Retry
from service.client.routes import Happening as Happening
from service.client.sync_client import Client as Client
