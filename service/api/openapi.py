"""The OpenAPI document: FastAPI's, with our errors in place of its own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.schemas import Problem
from trainer.run_schema import PROBLEM_JSON

_SCHEMA_REF = "#/components/schemas/{model}"
_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")


def openapi(app: FastAPI) -> dict[str, Any]:
    """Made once, when it is first asked for."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            webhooks=app.webhooks.routes,
            tags=app.openapi_tags,
        )
        for path in (*document["paths"].values(), *document["webhooks"].values()):
            for operation in path.values():
                _drop_fastapis_errors(operation["responses"])
        schemas = document["components"]["schemas"]
        for name in _FASTAPIS_OWN:
            schemas.pop(name, None)
        _, ours = models_json_schema([(Problem, "serialization")], ref_template=_SCHEMA_REF)
        schemas |= ours["$defs"]
        app.openapi_schema = document
    return app.openapi_schema


def _drop_fastapis_errors(responses: dict[str, Any]) -> None:
    """FastAPI claims a 422 for every route with a parameter; ours that have one say so themselves."""
    if PROBLEM_JSON not in responses.get("422", {}).get("content", {PROBLEM_JSON: None}):
        del responses["422"]
