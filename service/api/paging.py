"""Pages: how long one may be."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import Request

from service.api.context import InContext
from service.api.errors import ProblemError
from service.schemas import FieldProblem


async def check_page_size(request: Request, context: InContext) -> None:
    """Of every route: refuse a page that is larger than the settings allow. What is no number, the route refuses."""
    given = request.query_params.get("limit", "")
    allowed = context.settings.max_page_size
    if given.isdecimal() and given.isascii() and len(given) < 10 and int(given) > allowed:
        message = f"must be at most {allowed}; HUSH_MAX_PAGE_SIZE of the service sets this"
        wrong = FieldProblem(field="query.limit", value=given, message=message)
        raise ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, f"query.limit = {given}: {message}", errors=[wrong])
