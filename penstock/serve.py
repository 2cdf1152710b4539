"""`penstock serve`: gateway and worker in one process, on memory or on Redis. The embedded default."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from penstock import server
from penstock.metrics import Metrics
from penstock.settings import Settings
from penstock.transports import Transport
from penstock.worker import build_worker


def run_serve(settings: Settings) -> int:
    """Blocks until a signal; returns the exit status."""

    @contextlib.asynccontextmanager
    async def with_worker(transport: Transport, metrics: Metrics) -> AsyncIterator[None]:
        worker = build_worker(settings, transport, metrics)
        working = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.stop()
            await working

    return server.run(settings, server.bind(settings), with_worker)
