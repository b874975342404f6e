"""Every error is RFC 9457 problem details: what routes raise, and how each error becomes an answer.

ProblemError                         raised by routes
HTTPException                        raised by Starlette: unknown routes, wrong methods, bodies too large
RequestValidationError               raised by FastAPI: a body or parameter that does not fit, JSON that is none
OperationalError                     the database does not answer: 503
InternalError                        PostgreSQL has ended a transaction that was silent for too long: 503
Exception                            a fault of ours: 500, told nothing but that; the log has the traceback
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.results.example_tables import UnreadableError
from service.schemas import FieldProblem, Problem
from service.telemetry.requests import REQUEST_ID
from trainer.run_schema import PROBLEM_JSON
from trainer.spec import JobSpec
from trainer.spec_errors import SpecError, field_errors

logger = logging.getLogger(__name__)

DATABASE_AWAY = (OperationalError, InternalError, PoolTimeoutError)
"""What SQLAlchemy raises when the database does not answer."""
DATABASE_RETRY_S = 2
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class ProblemError(Exception):
    """An error that a route answers with."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        errors: Iterable[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`detail` is for people; `errors` names the fields that are wrong."""
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = list(errors) or None
        self.headers = dict(headers or {})


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documents these errors of a route in OpenAPI."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Have `app` answer every error as a problem."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(UnreadableError, _on_unreadable)
    for error in DATABASE_AWAY:
        app.add_exception_handler(error, _on_database_away)
    app.add_exception_handler(Exception, _on_fault)


def problem_response(request: Request, error: ProblemError) -> Response:
    """The answer for one error."""
    problem = Problem(
        type="about:blank",
        title=error.status.phrase,
        status=error.status,
        detail=_printable(error.detail),
        instance=quote(request.scope["path"], errors="replace"),
        errors=error.errors,
    )
    content = problem.model_dump_json(exclude_none=True)
    return Response(content, error.status, error.headers, media_type=PROBLEM_JSON)


def _printable(text: str) -> str:
    """Without lone surrogates, which JSON can smuggle into a string but UTF-8 cannot carry out again."""
    return text.encode("utf-8", "backslashreplace").decode()


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return problem_response(request, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers or {})
    detail = error.detail
    match status:
        case HTTPStatus.NOT_FOUND:
            detail = "There is nothing here; /docs lists what there is."
        case HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_allowed_methods(request))
            detail = f"{request.method} is not allowed here; allowed are {headers['Allow']}."
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            detail = "The body is larger than this service takes."
        case HTTPStatus.BAD_REQUEST:
            detail = "The body is not JSON that can be read."
    return problem_response(request, ProblemError(status, detail, headers=headers))


def _allowed_methods(request: Request) -> list[str]:
    """Methods of all routes at this path: each route knows its own only."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    routes = request.app.router.routes
    return [m for m, scope in scopes.items() if any(route.matches(scope)[0] is Match.FULL for route in routes)]


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors: Sequence[ErrorDetails] = error.errors()
    if any(entry["type"] == "json_invalid" for entry in errors):
        where = errors[0]["loc"][-1]
        return problem_response(
            request, ProblemError(HTTPStatus.BAD_REQUEST, f"The body is not JSON: see byte {where}.")
        )
    try:
        wrong = [FieldProblem(field=f, value=v, message=m) for f, v, m in _wrong_fields(errors, _body_model(request))]
    except RecursionError:
        return problem_response(request, ProblemError(HTTPStatus.BAD_REQUEST, "The body is nested too deeply."))
    detail = "; ".join(f"{e.field}{'' if e.value is None else f' = {e.value}'}: {e.message}" for e in wrong[:5])
    return problem_response(request, ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=wrong))


def spec_problem(error: SpecError) -> ProblemError:
    """A 422 that says what is wrong with each field of a spec."""
    wrong = [FieldProblem(field=e.field, value=e.value, message=e.allowed) for e in error.errors]
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(map(str, error.errors[:5])), errors=wrong)


def _body_model(request: Request) -> type[BaseModel]:
    """The model that a route reads its body into."""
    body = getattr(request.scope.get("route"), "body_field", None)
    annotation = None if body is None else body.field_info.annotation
    named = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in named if issubclass(kind, BaseModel)), JobSpec)


def _wrong_fields(errors: Sequence[ErrorDetails], root: type[BaseModel]) -> Iterable[tuple[str, str | None, str]]:
    """Field, value and what is allowed: of a body in its own words, of parameters as `query.limit`."""
    body = [{**entry, "loc": entry["loc"][1:]} for entry in errors if entry["loc"][0] == "body"]
    for wrong in field_errors(body, root):  # type: ignore[arg-type]  # mypy widens a spread TypedDict to a dict
        yield (
            _printable(wrong.field),
            None if wrong.value is None else _printable(wrong.value),
            _printable(wrong.allowed),
        )
    for entry in errors:
        if entry["loc"][0] != "body":
            field = ".".join(str(piece) for piece in entry["loc"])
            value = None if entry["type"] == "missing" else _printable(repr(entry["input"])[:80])
            yield field, value, _printable(entry["msg"])


def away(what: str, retry_after_s: int) -> ProblemError:
    """A 503: a part that the service needs does not answer."""
    headers = {"Retry-After": str(retry_after_s)}
    return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, f"The {what} does not answer now; try again.", headers=headers)


async def _on_database_away(request: Request, _error: Exception) -> Response:
    return problem_response(request, away("database", DATABASE_RETRY_S))


async def _on_unreadable(request: Request, error: Exception) -> Response:
    logger.warning("%s: %s", request.scope["path"], error)
    return problem_response(request, ProblemError(HTTPStatus.NOT_FOUND, f"The result is damaged: {error}."))


async def _on_fault(request: Request, _error: Exception) -> Response:
    # Starlette raises the error again after this answer went out, and the server logs it with its traceback.
    # The answer goes out past all middleware, which would else have named the request.
    request_id = getattr(request.state, "request_id", None)
    headers = {} if request_id is None else {REQUEST_ID: request_id}
    detail = "Something went wrong in the service; its log says what."
    return problem_response(request, ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, detail, headers=headers))
