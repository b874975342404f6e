"""The whole service on one machine: API on SQLite, a local Ray head, a local MLflow server, all in one home folder.

The API answers within seconds; Ray and MLflow start beside it, and `/readyz` says what is not ready. Whatever happens
to this process, the guardian (service.embedded.guardian) ends all it started and removes what is of no use afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import httpx
import psutil
from pydantic import SecretStr

from service.access.hosts import is_loopback
from service.embedded.guardian import Guardian, GuardianLostError, RemoveAtEnd, Start
from service.embedded.home import SERVER_FILE, ServerAddresses, lock_home, write_addresses
from service.embedded.local_servers import LOOPBACK, MAX_LOG_BYTES, LocalServer, mlflow_server, open_log, ray_head
from service.settings import Settings

if TYPE_CHECKING:
    from service.api.server import Server

DEFAULT_PORT: Final = 8900
RAY_TOKEN_FILE: Final = "ray-token"  # noqa: S105 - a file name
"""In the home folder while it is served: what Ray's dashboard asks for in a browser."""
LEASE_TTL_S: Final = 3.0
"""Nobody else is on this home (lock_home): one that was killed and starts again need not wait for its own lease."""

ROUNDS: Final = 3
"""Times that ports are chosen anew when somebody else takes one between choosing and listening."""
RESTARTS: Final = 5
"""Times that a server which ended by itself is started again."""
POLL_S: Final = 0.2
API_GRACE_S: Final = 12
"""Seconds for the API's requests under way; one that waits for Ray longer than that fails when Ray is ended."""
LOG_LINES_SHOWN: Final = 8

PartState = Literal["starting", "ready"]


class EmbeddedError(Exception):
    """The embedded service cannot start or go on; the message says why, and where to read more."""


class _PortTakenError(Exception):
    """Another process listens on a port that we chose."""


@dataclass(frozen=True)
class ServeOptions:
    """What `hush serve` is asked for."""

    home: Path
    host: str = LOOPBACK
    port: int | None = None
    """Port of the API; None: 8900, or any free one if that is taken."""
    num_cpus: int | None = None
    """CPUs that Ray shares out; None: as many as the machine has."""
    warm: bool = True
    """Whether workers are kept ready for the next job."""


@dataclass
class Part:
    """One of API, Ray and MLflow, as it stands now."""

    name: str
    url: str
    state: PartState = "starting"
    since: float = field(default_factory=time.monotonic)
    """When it was started."""
    ready_after_s: float | None = None
    num_restarts: int = 0

    def became_ready(self) -> None:
        """It answers."""
        self.state, self.ready_after_s = "ready", time.monotonic() - self.since


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP ask for an orderly stop; a second one hurries it. They interrupt nothing."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.signalled = False
        """Whether a signal came."""
        self.hurry: Callable[[], None] | None = None
        """What a second signal does."""

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block; the main thread only."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def ask(self) -> None:
        """Ask for an orderly stop without a signal."""
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep, but not past a signal; whether to stop."""
        return self._event.wait(timeout_s)

    def _on_signal(self, _number: int, _frame: object) -> None:
        if self._event.is_set() and self.hurry is not None:
            self.hurry()
        self.signalled = True
        self._event.set()


Observer = Callable[[Literal["serving", "stopping"], Sequence[Part]], None]
"""Told several times a second how the parts stand."""


def serve(options: ServeOptions, observer: Observer, stop: StopSignals) -> None:
    """Serve until `stop` is asked for. HomeInUseError, ValueError or EmbeddedError if that cannot be."""
    with lock_home(options.home) as lock, stop.installed():
        _check_exposure(options)
        with _bind(options) as listener:
            _serve_rounds(options, listener, lock.fileno(), stop, observer)


def _check_exposure(options: ServeOptions) -> None:
    """Others than this machine are let in only by tokens, which somebody must have made."""
    if not is_loopback(options.host):
        from service.access.exposure import check_exposure  # noqa: PLC0415 - as _make_server

        check_exposure(Settings(home=options.home), options.host)


def _serve_rounds(
    options: ServeOptions, listener: socket.socket, lock: int, stop: StopSignals, observer: Observer
) -> None:
    for _ in range(ROUNDS):
        try:
            _serve_round(options, listener, lock, stop, observer)
        except _PortTakenError:
            continue
        return
    raise EmbeddedError("other processes took every port that was chosen, three times over; try again")


def _bind(options: ServeOptions) -> socket.socket:
    """A listening socket for the API, ours from here on."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        port = DEFAULT_PORT if options.port is None else options.port
        return socket.create_server((options.host, port), family=family)
    except OSError as error:
        if options.port is None:
            return socket.create_server((options.host, 0), family=family)
        raise ValueError(f"--port {options.port} cannot be used: {error.strerror}; choose another one") from None


def _serve_round(
    options: ServeOptions, listener: socket.socket, lock: int, stop: StopSignals, observer: Observer
) -> None:
    """Start everything, and serve until asked to stop; _PortTakenError if it takes another round with other ports."""
    guardian = Guardian(keep_open=[lock])
    stop.hurry = guardian.hurry
    api: _Api | None = None
    try:
        servers = _Servers(guardian, options.home, _local_servers(guardian, options))
        api = _Api(options, listener, servers.addresses(_url_of(listener)), servers.ray_token)
        while not stop.wait(POLL_S):
            servers.look()
            api.look()
            observer("serving", [api.part, *servers.parts])
        observer("stopping", [])
    except GuardianLostError:
        raise EmbeddedError("the process that watches over Ray and MLflow was killed, and so they were") from None
    finally:
        if api is not None:
            api.stop(API_GRACE_S)
        guardian.close()
        if api is not None:
            api.stop(API_GRACE_S)


def _local_servers(guardian: Guardian, options: ServeOptions) -> list[LocalServer]:
    """Ray and MLflow, not started yet; the guardian knows what to remove before it is there."""
    temp_dir = Path(tempfile.gettempdir()) / f"hush-{secrets.token_hex(4)}"
    if len(bytes(temp_dir)) > 40:
        temp_dir = Path("/tmp") / temp_dir.name  # noqa: S108 - private, and Ray's socket paths must be short
    guardian.send(RemoveAtEnd(str(temp_dir)))
    token_file = options.home / RAY_TOKEN_FILE
    for file in (options.home / SERVER_FILE, token_file):
        guardian.send(RemoveAtEnd(str(file)))
    temp_dir.mkdir(mode=0o700)
    return [ray_head(temp_dir, token_file, options.num_cpus), mlflow_server(options.home, temp_dir)]


def _url_of(listener: socket.socket) -> str:
    """As this machine and its workers reach it, wherever else it listens."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Servers:
    """Ray and MLflow under the guardian."""

    def __init__(self, guardian: Guardian, home: Path, servers: Sequence[LocalServer]) -> None:
        self._guardian = guardian
        self._http = httpx.Client(timeout=2, trust_env=False)
        self._servers = {server.name: server for server in servers}
        self._logs = {server.name: open_log(home, server.name) for server in servers}
        self._parts = {server.name: Part(server.name, server.url) for server in servers}
        for name in self._servers:
            self._start(name)

    @property
    def parts(self) -> list[Part]:
        """How they stand."""
        return list(self._parts.values())

    @property
    def ray_token(self) -> SecretStr | None:
        """What Ray asks for."""
        token = self._servers["Ray"].token
        return SecretStr(token) if token else None

    def addresses(self, url: str) -> ServerAddresses:
        """What others need to know to find everything."""
        pid = psutil.Process().pid
        return ServerAddresses(
            url=url, mlflow_url=self._servers["MLflow"].url, ray_url=self._servers["Ray"].url, pid=pid
        )

    def look(self) -> None:
        """Start again what ended, and find out what has become ready."""
        for exited in self._guardian.exited():
            self._on_exit(exited.name, exited.returncode)
        for name, part in self._parts.items():
            if part.state == "starting" and self._is_ready(self._servers[name]):
                part.became_ready()

    def _start(self, name: str) -> None:
        server = self._servers[name]
        self._guardian.send(Start(name, server.argv, server.env, str(self._logs[name])))

    def _on_exit(self, name: str, returncode: int) -> None:
        part, server = self._parts[name], self._servers[name]
        if part.ready_after_s is None and _listener_pid(server.port) is not None:
            raise _PortTakenError
        if part.ready_after_s is None or part.num_restarts >= RESTARTS:
            raise EmbeddedError(f"{name} ended with code {returncode}; {_last_lines(self._logs[name])}")
        logging.getLogger(__name__).warning("%s ended with code %s and is started again", name, returncode)
        part.state, part.since, part.num_restarts = "starting", time.monotonic(), part.num_restarts + 1
        self._start(name)

    def _is_ready(self, server: LocalServer) -> bool:
        try:
            headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
            if not self._http.get(server.url + server.ready_path, headers=headers).is_success:
                return False
        except httpx.HTTPError:
            return False
        pid = _listener_pid(server.port)
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid and self._guardian.pid in [parent.pid for parent in psutil.Process(pid).parents()]:
                return True
        raise _PortTakenError


def _listener_pid(port: int) -> int | None:
    """The process that listens on a loopback port: 0 if it is another user's, None if there is none."""
    for connection in psutil.net_connections("tcp4"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            return connection.pid or 0
    return None


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    return f"the last lines of {log} are:\n" + "\n".join(f"  {line}" for line in lines)


class _Api:
    """The API in a thread of its own, so that signals stay with the main thread."""

    def __init__(
        self, options: ServeOptions, listener: socket.socket, addresses: ServerAddresses, ray_token: SecretStr | None
    ) -> None:
        self.part = Part("API", addresses.url)
        self._home = options.home
        self._addresses = addresses
        self._log = open_log(options.home, "service")
        self._settings = _settings(options, addresses, ray_token)
        self._server = _make_server(self._settings, options.host, self._log)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(listener.dup(),), name="api", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Find out whether it is ready; EmbeddedError if it ended."""
        if self.part.state == "starting" and self._server.started:
            token = _local_token(self._settings)
            write_addresses(self._home, self._addresses.model_copy(update={"token": token}))
            self.part.became_ready()
        if not self._thread.is_alive():
            reason = f"{self._error}; " if self._error else ""
            raise EmbeddedError(f"the API ended: {reason}{_last_lines(self._log)}")

    def stop(self, timeout_s: float) -> None:
        """Accept nothing more, let requests under way finish, and wait for that, but not for ever."""
        self._server.stop()
        self._thread.join(timeout_s)

    def _run(self, listener: socket.socket) -> None:
        try:
            self._server.run(sockets=[listener])
        except (Exception, SystemExit) as error:  # uvicorn leaves by SystemExit when the app cannot start
            self._error = error
            logging.getLogger(__name__).exception("The API ended")


def _settings(options: ServeOptions, addresses: ServerAddresses, ray_token: SecretStr | None) -> Settings:
    return Settings(
        home=options.home,
        public_url=addresses.url,
        ray_address=addresses.ray_url,
        ray_token=ray_token,
        mlflow_uri=addresses.mlflow_url,
        lease_ttl_s=LEASE_TTL_S,
        warm_workers=options.warm,
    )


def _local_token(settings: Settings) -> str:
    """What commands on this machine show to the API."""
    from service.embedded.local_token import local_token  # noqa: PLC0415 - as _make_server

    return local_token(settings)


def _make_server(settings: Settings, host: str, log: Path) -> Server:
    """The API's server. Its imports take a second or two, in which Ray and MLflow start already."""
    from service.api.app import create_app  # noqa: PLC0415
    from service.api.server import Server  # noqa: PLC0415
    from service.telemetry.json_logs import log_as_json  # noqa: PLC0415

    handler = logging.handlers.RotatingFileHandler(log, maxBytes=MAX_LOG_BYTES, backupCount=1)
    log_as_json(handler)
    return Server(create_app(settings), host, int(settings.public_url.rpartition(":")[2]))
