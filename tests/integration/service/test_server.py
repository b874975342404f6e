"""How the server listens."""

from __future__ import annotations

import socket

from service_stand_ins import RunningService


def test_no_answer_waits_for_an_acknowledgement(service: RunningService) -> None:
    listeners = [listener for server in service.server.servers for listener in server.sockets]
    assert listeners
    for listener in listeners:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
