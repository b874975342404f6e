"""Liveness and readiness."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from service.api.context import InContext
from service.schemas import Health

router = APIRouter(tags=["health"])


@router.get("/", include_in_schema=False)
def get_root() -> RedirectResponse:
    """The front door leads to the API's documentation."""
    return RedirectResponse("/docs")


@router.get("/healthz", summary="Liveness")
async def get_healthz() -> Health:
    """The process lives."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health, "description": "A part is away."}}, summary="Readiness")
async def get_readyz(context: InContext, response: Response) -> Health:
    """Whether every part that jobs need answers; 503 and which one, where not."""
    health = await context.readiness.now()
    if health.status != "ok":
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return health
