"""JSON messages over one TCP connection. Nothing here waits for the other side."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any

LONGEST_MESSAGE = 1 << 20
"""Bytes."""


class Line:
    """One end of a connection. Errors of the network close it; what then follows is for the caller to judge."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._received = connection, b""
        self.is_open = True

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, **message: Any) -> None:
        """Messages are far smaller than a socket's buffer: if one does not fit, nobody has read for hours."""
        with suppress(OSError):  # whether the other side is gone is told by receive, and by its silence
            self._socket.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have arrived. Closes the line at its end."""
        try:
            while data := self._socket.recv(65536):
                self._received += data
            self.is_open = False
        except BlockingIOError:
            pass
        except OSError:
            self.is_open = False
        *lines, self._received = self._received.split(b"\n")
        self.is_open = self.is_open and len(self._received) < LONGEST_MESSAGE
        return [json.loads(line) for line in lines]

    def end_sending(self) -> None:
        """The other side reads what was sent, then an end: closing at once could take back what it has not read yet."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.is_open = False

    def close(self) -> None:
        self.is_open = False
        self._socket.close()
