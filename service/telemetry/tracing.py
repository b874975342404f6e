"""OpenTelemetry traces, where an endpoint is set: of requests (by FastAPI) and of the reconciler's looks and launches.

FastAPI brings OpenTelemetry's API, whose tracers do nothing by themselves. What records and sends is the extra
`hush[otel]`, imported only when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import NoOpTracer, Tracer
from starlette.types import Scope

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

NOT_TRACED: Final = ("/healthz", "/readyz", "/metrics", "/api/v1/internal/")
TIMEOUT_S: Final = 5


class Tracing:
    """Where spans go: to a collector, or nowhere."""

    def __init__(self, endpoint: str | None) -> None:
        """Base address of an OTLP/HTTP collector; ValueError if the extra is missing. Sends nothing before `start`."""
        self._endpoint = endpoint
        self._provider = None if endpoint is None else _provider()

    @property
    def fastapi_config(self) -> TelemetryConfig:
        """What FastAPI is to trace: requests; its metrics and logs would double ours."""
        off: TelemetryConfig = {"metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
        if self._provider is None:
            return {**off, "tracing": False}
        return {**off, "tracing": True, "tracer_provider": self._provider, "exclude": _is_left_out}

    @property
    def tracer(self) -> Tracer:
        """For spans of our own."""
        return NoOpTracer() if self._provider is None else self._provider.get_tracer("hush")

    def start(self) -> None:
        """Begin to send, in a thread of its own."""
        if self._provider is None:
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        exporter = OTLPSpanExporter(endpoint=f"{self._endpoint}/v1/traces", timeout=TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))

    def stop(self) -> None:
        """Send what is left, and end."""
        if self._provider is not None:
            self._provider.shutdown()


def _provider() -> TracerProvider:
    try:
        import opentelemetry.exporter.otlp.proto.http  # noqa: F401, PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(
            f"HUSH_OTEL_ENDPOINT asks for traces, which take the extra: pip install 'hush[otel]' ({error})"
        ) from None
    return TracerProvider(resource=Resource.create({"service.name": "hush"}), shutdown_on_exit=False)


def _is_left_out(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.startswith(NOT_TRACED)
