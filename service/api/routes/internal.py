"""What attempts say to the service. Not part of the public API."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path

from service.api.auth import bearer
from service.api.context import InContext
from service.api.errors import ProblemError
from service.api.routes.jobs import json_only
from service.jobs.ids import is_id
from service.store.store import FencedOffError, UnknownAttemptError, WrongTokenError
from trainer.run_schema import Heartbeat, HeartbeatReply

router = APIRouter(prefix="/internal", include_in_schema=False)


@router.post("/attempts/{job_id}/{attempt}/heartbeat", dependencies=[Depends(json_only)])
def take_heartbeat(
    job_id: str,
    attempt: Annotated[int, Path(ge=1, le=2**31 - 1)],
    beat: Heartbeat,
    context: InContext,
    authorization: Annotated[str, Header()] = "",
) -> HeartbeatReply:
    """Take in rank 0's heartbeat; the answer says whether to go on. 401, 404 and 409: this attempt must stop."""
    token = bearer(authorization)
    if token is None:
        raise _unauthorized()
    if not is_id(job_id):
        raise ProblemError(HTTPStatus.NOT_FOUND, "There is no such attempt.")
    try:
        reply = context.store.heartbeat(job_id, attempt, token, beat, datetime.now(UTC))
    except UnknownAttemptError:
        raise ProblemError(HTTPStatus.NOT_FOUND, "There is no such attempt.") from None
    except WrongTokenError:
        raise _unauthorized() from None
    except FencedOffError:
        detail = "This attempt is not the current one any more, or its job has ended."
        raise ProblemError(HTTPStatus.CONFLICT, detail) from None
    context.metrics.saw_heartbeat()
    return reply


def _unauthorized() -> ProblemError:
    headers = {"WWW-Authenticate": "Bearer"}
    return ProblemError(HTTPStatus.UNAUTHORIZED, "The attempt's bearer token is missing or wrong.", headers=headers)
