"""How the connections of both shells are kept."""

from __future__ import annotations

import socket

import httpx2

CONNECT_S = 5.0
_PROBES = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


def limits(max_connections: int) -> httpx2.Limits:
    return httpx2.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)


def socket_options() -> list[tuple[int, int, int]]:
    """A peer that vanished without a word is noticed after half a minute, also while nothing is due from it."""
    probes = [(socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in _PROBES if hasattr(socket, name)]
    return [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        *probes,
    ]
