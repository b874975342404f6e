"""The Ray head and the MLflow server of an embedded service: command, environment, and how to see that each is ready.

Everything listens on the loopback interface. Ray does so on Linux by the switch it has for macOS and Windows: with
clusters off, head, raylet and agents take 127.0.0.1; `--node-ip-address 127.0.0.1` would become the outer address. And
Ray runs with a token of ours: without one, any program on this machine could have it run code; and it would take the
one in `~/.ray`, where there is one, which the service does not know.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
OBJECT_STORE_BYTES: Final = 200 * 1024**2
"""Ray's shared memory. Pictures and weights never go through it; Ray's least is 75 MB."""
MLFLOW_PORT: Final = 8901
RAY_PORT: Final = 8902
"""Preferred, so that links to a run and open pages are good again after a restart."""
MAX_LOG_BYTES: Final = 10 * 1024**2


@dataclass(frozen=True)
class LocalServer:
    """A server to start."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    port: int
    ready_path: str
    """Answers 200 when the server is ready."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that it asks for."""

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://{LOOPBACK}:{self.port}"


def free_ports(*preferred: int) -> list[int]:
    """For each preferred port (0: none), that one or else another that nobody listens on now; all different.

    Whoever starts a server on one has to check that it is his which listens there.
    """
    sockets = [_listen(port) for port in preferred]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError:
        return socket.create_server((LOOPBACK, 0))


def ray_head(temp_dir: Path, token_file: Path, num_cpus: int | None) -> LocalServer:
    """A Ray head whose files lie in `temp_dir`, which must be short: paths of its sockets may have 107 bytes."""
    token = secrets.token_hex(32)
    token_file.unlink(missing_ok=True)
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    dashboard, client_server, metrics = free_ports(RAY_PORT, 0, 0)
    argv = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--port", "0", "--min-worker-port", "0", "--max-worker-port", "0"),
        # Said to be included, a dashboard that cannot start ends the head. Else it runs on, and takes no jobs for ever.
        *("--include-dashboard", "true", "--dashboard-host", LOOPBACK, "--dashboard-port", str(dashboard)),
        *("--dashboard-agent-listen-port", "0", "--ray-client-server-port", str(client_server)),
        *("--num-cpus", str(num_cpus or os.cpu_count() or 1), "--object-store-memory", str(OBJECT_STORE_BYTES)),
        *("--temp-dir", str(temp_dir), "--include-log-monitor", "false", "--no-monitor", "--disable-usage-stats"),
    ]
    env = {
        "TMPDIR": str(temp_dir),  # so that what killed processes leave there goes with it
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "1",  # then killed: three, as Ray has it, would make a cancel last too long
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "DASHBOARD_METRIC_PORT": str(metrics),
    }
    return LocalServer("Ray", tuple(argv), _environment(env), dashboard, "/api/version", token)


def mlflow_server(home: Path, temp_dir: Path) -> LocalServer:
    """An MLflow server on SQLite that also serves the artifacts; its job runners (2 GB, a minute to start) stay off."""
    (port,) = free_ports(MLFLOW_PORT)
    hosts = [f"{name}:{port}" for name in (LOOPBACK, "localhost")]
    argv = [
        *(sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}"),
        *("--artifacts-destination", (home / "mlflow-artifacts").as_uri()),
        *("--allowed-hosts", ",".join(hosts)),
        *("--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts)),
    ]
    env = {
        "TMPDIR": str(temp_dir),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    return LocalServer("MLflow", tuple(argv), _environment(env), port, "/health")


def open_log(home: Path, name: str) -> Path:
    """Path of a log in `<home>/logs`; one that has grown large is set aside as `.1`."""
    log = home / "logs" / f"{name.lower()}.log"
    log.parent.mkdir(exist_ok=True)
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    return log


def _environment(own: dict[str, str]) -> dict[str, str]:
    """Our environment without what steers another Ray or MLflow, plus `own`."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))} | own
