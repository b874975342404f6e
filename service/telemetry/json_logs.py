"""Logs as JSON, one object a line: a machine reads them, and a line break in a name forges none."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from opentelemetry import trace

from service.telemetry.log_fields import log_fields

QUIET = ("httpx", "httpcore", "uvicorn.access", "alembic")
"""Loggers that tell of every request or step; ours tell what matters of it."""


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`, then what is bound (`request_id`, `job_id`, …), `trace_id` where there is
    a trace, `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """A line, without its end."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **log_fields(),
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = trace.format_trace_id(span.trace_id)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(handler: logging.Handler) -> None:
    """Have this process log to `handler`, and nowhere else."""
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
