"""Prometheus metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response

from service.api.context import InContext

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "All metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    summary="Prometheus metrics",
)
def get_metrics(context: InContext, accept: Annotated[str, Header(include_in_schema=False)] = "") -> Response:
    """Requests, jobs by state, queue, attempts, reconciler, heartbeats, webhooks, followers and the process itself."""
    content, media_type = context.metrics.render(accept)
    return Response(content, headers={"Content-Type": media_type})
