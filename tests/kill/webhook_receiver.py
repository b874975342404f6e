"""Who is told by webhooks: a small HTTP server that remembers which deliveries reached it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WebhookReceiver:
    """Remembers each delivery's id and what it said."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        """(webhook-id, body) as they came, repeated ones too."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                receiver.told.append((self.headers["webhook-id"], body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its own name)
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def states_of(self, job_id: str) -> list[str]:
        """The states that were told of a job, each delivery once, in the order of their first coming."""
        events = [(delivery, json.loads(body)["data"]["event"]) for delivery, body in self.told]
        once = {delivery: event["state"] for delivery, event in events if event["job_id"] == job_id}
        return list(once.values())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def webhook_receiver() -> Iterator[WebhookReceiver]:
    """A receiver for a block of code."""
    receiver = WebhookReceiver()
    try:
        yield receiver
    finally:
        receiver.close()
