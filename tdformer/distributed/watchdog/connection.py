"""A connection carries messages between two processes: each is one line of JSON over TCP. No function here waits for the other side."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any

MAX_MESSAGE_BYTES = 1 << 20


class Connection:
    """This is one end of a TCP connection.

    A network error closes it and raises nothing: `is_open` becomes False, and the caller decides what that means.
    """

    def __init__(self, endpoint: socket.socket) -> None:
        endpoint.setblocking(False)
        endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._received = endpoint, b""
        self.is_open = True

    def fileno(self) -> int:
        """Return the socket's file descriptor, so that `select` can wait for it."""
        return self._socket.fileno()

    def send(self, **message: Any) -> None:
        """Send one message, or drop it. A socket's buffer holds many messages, so it is full only if nobody has read for hours."""
        with suppress(OSError):  # `receive` and the missing answers show that the other side is gone
            self._socket.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived. Sets `is_open` to False at the end of the stream.

        Raises ValueError if a line is no JSON. A valid line need not be an object: the caller checks what it holds.
        """
        try:
            while data := self._socket.recv(65536):
                self._received += data
            self.is_open = False
        except BlockingIOError:
            pass
        except OSError:
            self.is_open = False
        *lines, self._received = self._received.split(b"\n")
        self.is_open = self.is_open and len(self._received) < MAX_MESSAGE_BYTES
        return [json.loads(line) for line in lines]

    def end_sending(self) -> None:
        """Tell the other side that nothing more comes. It still reads what was sent before.

        `close` could discard data that the other side has not read yet.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.is_open = False

    def close(self) -> None:
        """Close the connection at once."""
        self.is_open = False
        self._socket.close()
