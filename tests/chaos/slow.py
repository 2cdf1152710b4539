"""Clients that ask for a stream and then read nothing of it."""

from __future__ import annotations

import asyncio
import socket

import msgspec

_WINDOW = 4096
_SEGMENT = 1400  # as on a real network: the loopback's 64 KiB would have the kernel buffer a megabyte


async def idle(url: str, num: int, model: str, max_tokens: int) -> list[socket.socket]:
    """`num` of them; each holds its connection, with a receive window as small as it may be."""
    host, _, port = url.removeprefix("http://").partition(":")
    return [await _idle(host, int(port), model, max_tokens, index) for index in range(num)]


async def _idle(host: str, port: int, model: str, max_tokens: int, index: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)
    client.setblocking(False)
    await loop.sock_connect(client, (host, port))
    body = {"model": model, "prompt": f"idle {index}", "max_tokens": max_tokens, "stream": True}
    data = msgspec.json.encode(body)
    head = (
        "POST /v1/generate HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(data)}",
    )
    await loop.sock_sendall(client, "\r\n".join([*head, "", ""]).encode() + data)
    return client


def close(clients: list[socket.socket]) -> None:
    for client in clients:
        client.close()
