"""Liveness and readiness."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import httpx
from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from service.api.context import Context, InContext
from service.schemas import Health

router = APIRouter(tags=["health"])
logger = logging.getLogger(__name__)

MAX_SILENCE_S = 30.0
"""A reconciler whose last look is older than this hangs; a look at many jobs on a slow cluster takes seconds."""
_MLFLOW_TIMEOUT_S = 3.0


@router.get("/", include_in_schema=False)
def get_root() -> RedirectResponse:
    """The front door leads to the API's documentation."""
    return RedirectResponse("/docs")


@router.get("/healthz", summary="Liveness")
def get_healthz() -> Health:
    """The process lives."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health, "description": "A part is away."}}, summary="Readiness")
def get_readyz(context: InContext, response: Response) -> Health:
    """Whether every part that jobs need answers; 503 and which one, where not."""
    checks: dict[str, Callable[[Context], None]] = {
        "database": _check_database,
        "reconciler": _check_reconciler,
        "ray": _check_ray,
        "mlflow": _check_mlflow,
    }
    if context.settings.mlflow_uri is None:
        del checks["mlflow"]
    with ThreadPoolExecutor(len(checks)) as pool:
        states = dict(zip(checks, pool.map(lambda check: _state(check, context), checks.values()), strict=True))
    ok = all(state == "ok" for state in states.values())
    if not ok:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return Health(status="ok" if ok else "unavailable", checks=states)


def _state(check: Callable[[Context], None], context: Context) -> str:
    try:
        check(context)
    except Exception as error:
        logger.info("not ready: %s", error)
        return f"unavailable ({type(error).__name__})"
    return "ok"


def _check_database(context: Context) -> None:
    context.store.ping()


def _check_reconciler(context: Context) -> None:
    silent_s = context.reconciler.last_look_s
    if silent_s is None or silent_s > MAX_SILENCE_S:
        raise RuntimeError("the reconciler does not look after the jobs")


def _check_ray(context: Context) -> None:
    if not context.launcher.nodes():
        raise RuntimeError("the cluster has no machine")


def _check_mlflow(context: Context) -> None:
    url = f"{context.settings.mlflow_uri}/health"
    httpx.get(url, timeout=_MLFLOW_TIMEOUT_S, trust_env=False).raise_for_status()
