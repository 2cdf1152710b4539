"""A gateway and a worker in the process of the test, behind a real socket: for what only the whole of them shows."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn

from penstock.api.app import create_app
from penstock.gateway.gateway import Gateway
from penstock.http.connection import GatewayConnection
from penstock.http.listener import ConnectionLimit
from penstock.http.server import HttpServer
from penstock.metrics import Metrics
from penstock.processes.worker import build_worker
from penstock.settings import Settings
from penstock.transports.memory import MemoryTransport
from tests.support.waiting import wait_until


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[int]:
    """The port of a gateway with a worker in this process, as `penstock serve` runs them."""
    metrics, store = Metrics(), MemoryTransport()
    configured = Settings(**settings)
    gateway = Gateway(configured, store, metrics)
    worker = build_worker(configured, store, metrics)
    limit = ConnectionLimit(min(1000, configured.max_connections))
    http = limit.apply(GatewayConnection, header_timeout_s=configured.header_timeout_s)
    config = uvicorn.Config(
        create_app(gateway), http=http, log_config=None, access_log=False, proxy_headers=False, ws="none"
    )
    server = HttpServer(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        working = asyncio.create_task(worker.run())
        running = asyncio.create_task(server._serve([listener]))
        await wait_until(lambda: server.started and not gateway.why_not_ready(), "the gateway is ready")
        yield listener.getsockname()[1]
        server.should_exit = True
        await running
        worker.stop()
        await working


async def post(port: int, path: str, body: bytes) -> tuple[int, bytes]:
    """The status of the answer, and its body as it came, which is in chunks where it is a stream."""
    line = b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" % path.encode()
    fields = b"content-type: application/json\r\nidempotency-key: %x\r\ncontent-length: %d\r\n\r\n"
    return await ask(port, line + fields % (hash(body), len(body)) + body)


async def ask(port: int, request: bytes) -> tuple[int, bytes]:
    """The same for a request as it is sent, which must close its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]
