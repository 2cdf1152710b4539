"""Answers 503 on a gateway's port while none of its processes runs. Knows no HTTP but that one answer.

The listening socket lives in the parent, so that connections outlast its children. Without this they would wait in its
backlog for as long as the children keep dying.
"""

from __future__ import annotations

import socket
from collections import deque

from penstock.errors import Unavailable
from penstock.http import refusal

RETRY_AFTER_S = 5
MAX_LINGERING = 16  # answered, and kept open so that the answer is read


class Refuser:
    """Accepts the connections to `listener`, which other processes may share, and answers each with 503."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._answered: deque[socket.socket] = deque()
        self._answer = refusal.answer(
            Unavailable("No process of this gateway is running.", retry_after_s=RETRY_AFTER_S),
            [(b"x-content-type-options", b"nosniff")],
        )

    def fileno(self) -> int:
        self._listener.setblocking(False)
        return self._listener.fileno()

    def answer(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the client has left, or no descriptor is free: the next call tries again
        connection.setblocking(False)
        try:
            connection.send(self._answer)  # a new connection has room for it
            connection.shutdown(socket.SHUT_WR)
            for _ in range(16):  # with unread bytes `close` would send a reset, and the answer might be lost
                connection.recv(65536)
        except OSError:
            pass  # the client has not sent everything yet, or has left
        self._answered.append(connection)
        while len(self._answered) > MAX_LINGERING:
            self._answered.popleft().close()
