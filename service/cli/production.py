"""`hush api`: the API alone, of a service whose database, Ray and MLflow run elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.options import SERVICE
from service.cli.session import one_line_errors

app = typer.Typer()


@app.command("api", rich_help_panel=SERVICE)
def api_command(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on, e.g. 0.0.0.0.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Serve the API in production, beside as many others on the same database as you like.

    Everything is set by HUSH_* variables: HUSH_DATABASE_URL (PostgreSQL), HUSH_RAY_ADDRESS, HUSH_MLFLOW_URI,
    HUSH_STORAGE, HUSH_PUBLIC_URL (where the workers reach it) and the rest of service/settings.py. It speaks HTTP: put
    what speaks TLS before it. It listens to other machines only if somebody has a token (hush token create) or there is
    an identity provider (HUSH_OIDC_ISSUER), and if no secret is one that everybody knows.

    Example: HUSH_DATABASE_URL=postgresql://… hush api --host 0.0.0.0
    """
    with one_line_errors():
        from service.api.serve import serve_api

        serve_api(host, port)
