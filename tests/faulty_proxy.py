"""An HTTP proxy before a real server that fails now and then: answers 500, falls silent, cuts connections."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from typing import Literal, cast

Fault = Literal["none", "500", "429", "502", "503", "cut", "no answer", "answer lost", "silent", "slow"]
"""cut: half the body, then no connection. silent: half the body, then nothing. slow: all of it, in small pieces.
answer lost: the server is asked, but its answer goes nowhere. 429 and 503 bear a Retry-After."""
ALL_FAULTS: tuple[Fault, ...] = ("500", "none", "cut", "none", "silent", "no answer", "none", "slow", "none")
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "date", "server"}


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to `target` (host, port); each by a method of `methods` fails by the next of `faults`."""

    daemon_threads = True

    def __init__(
        self,
        target: tuple[str, int],
        faults: Iterable[Fault] = ("none",),
        *,
        methods: Collection[str] = ("GET",),
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.methods = methods
        self.counts: Counter[Fault] = Counter()
        """Requests that could fail by what was done to them."""
        self.requests: list[tuple[str, str, str | None]] = []
        """(method, path, range)."""
        self.set_faults(faults)
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self.server_port}"

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """Fail by these from now on; forget what was counted."""
        self._faults = cycle(faults)
        self.counts.clear()
        self.requests.clear()

    def next_fault(self) -> Fault:
        fault = next(self._faults)
        self.counts[fault] += 1
        return fault

    def close(self) -> None:
        self.ended.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


def ask(
    target: tuple[str, int], method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[http.client.HTTPResponse, bytes]:
    """Ask the real server; its answer, and the body."""
    upstream = http.client.HTTPConnection(*target, timeout=30)
    try:
        upstream.request(method, path, body, headers)
        answer = upstream.getresponse()
        return answer, answer.read()
    finally:
        upstream.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits 40 ms for the header to be acknowledged

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        proxy = cast("FaultyProxy", self.server)
        proxy.requests.append((self.command, self.path, self.headers.get("Range")))
        fault = proxy.next_fault() if self.command in proxy.methods else "none"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if fault in {"500", "502"}:
                self.send_error(int(fault))
            elif fault in {"429", "503"}:
                self._turn_away(int(fault))
            elif fault == "answer lost":
                ask(proxy.target, self.command, self.path, body, dict(self.headers))
                self.close_connection = True
            elif fault == "no answer":
                self.close_connection = True
            else:
                self._answer(self._pass_on(proxy.target, body), fault, proxy.ended)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has had enough

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _pass_on(self, target: tuple[str, int], body: bytes) -> bytes:
        """Ask the real server, and give the client the answer's headers; its body is returned."""
        answer, content = ask(target, self.command, self.path, body, dict(self.headers))
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        return content

    def _turn_away(self, status: int) -> None:
        problem = {"type": "about:blank", "title": "Not now", "status": status, "detail": "later", "instance": "/"}
        body = json.dumps(problem).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, content: bytes, fault: Fault, ended: threading.Event) -> None:
        if fault in {"cut", "silent"}:
            self.close_connection = True
            self.wfile.write(content[: len(content) // 2])
            if fault == "silent":
                ended.wait(30)
        elif fault == "slow":
            for start in range(0, len(content), 4096):
                self.wfile.write(content[start : start + 4096])
                ended.wait(0.001)
        else:
            self.wfile.write(content)
