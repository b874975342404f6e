"""Tracing as an option."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.settings import Settings
from service.telemetry.tracing import Tracing


def test_without_an_endpoint_nothing_is_traced_nor_imported() -> None:
    program = (
        "import sys; from service.telemetry.tracing import Tracing; t = Tracing(None); t.start(); t.stop();"
        " assert not t.fastapi_config['tracing'];"
        " sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(ValueError, match=r"HUSH_OTEL_ENDPOINT asks for traces.*pip install 'hush\[otel\]'"):
        Tracing("http://127.0.0.1:4318")


def test_where_the_endpoint_is_read_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318/")
    assert Settings().otel_endpoint == "http://all:4318"
    monkeypatch.setenv("HUSH_OTEL_ENDPOINT", "http://hush:4318")
    assert Settings().otel_endpoint == "http://hush:4318"
    assert Settings(otel_endpoint="http://given:4318").otel_endpoint == "http://given:4318"
    with pytest.raises(ValueError, match="must start with http"):
        Settings(otel_endpoint="collector:4318")
