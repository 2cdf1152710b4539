"""`penstock serve`: a gateway and a worker in one process, over the memory store or Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator

from penstock.metrics import Metrics
from penstock.processes import gateway as server
from penstock.processes.listen import listen_for_clients
from penstock.processes.worker import build_worker, end_process
from penstock.settings import Settings
from penstock.transports.base import WorkerStore

logger = logging.getLogger(__name__)


def run_serve(settings: Settings) -> int:
    """Blocks until a signal; returns the exit status."""

    @contextlib.asynccontextmanager
    async def with_worker(store: WorkerStore, metrics: Metrics) -> AsyncIterator[None]:
        worker = build_worker(settings, store, metrics)
        working = asyncio.create_task(worker.run())
        working.add_done_callback(_watch)
        try:
            yield
        finally:
            worker.stop()
            await working

    def _watch(working: asyncio.Task[None]) -> None:
        """End a server whose worker has died, as no request would be answered; its supervisor starts another."""
        if not working.cancelled() and working.exception() is not None:
            logger.critical("the worker died", exc_info=working.exception())
            if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                end_process(0.0)  # no handler yet: a signal would end the process with the status of a clean stop
            os.kill(os.getpid(), signal.SIGTERM)

    return server.run(settings, listen_for_clients(settings), with_worker)
