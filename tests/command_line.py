"""The command line, pointed at a service."""

from __future__ import annotations

from typer.testing import CliRunner

from service.cli import app


class Hush:
    """`hush` with some arguments: exit code, stdout, stderr."""

    def __init__(self, url: str, token: str | None = None, *, columns: int = 160) -> None:
        self._env = {"HUSH_URL": url, "HUSH_TOKEN": token or "", "COLUMNS": str(columns)}

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, list(argv), env=self._env)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr
