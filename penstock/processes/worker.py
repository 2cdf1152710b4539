"""`penstock worker`: settings in, a running process out. Signals, start-up lines, `/metrics` and health."""

from __future__ import annotations

import asyncio
import logging
import os

import uvloop

from penstock.backends import Backend, build_backend
from penstock.errors import ConfigError, StoreUnavailable
from penstock.http.ops import build_app, serve_ops
from penstock.logs import configure as configure_logs
from penstock.metrics import Metrics
from penstock.metrics.lag import watch_lag
from penstock.processes.announce import announce_worker
from penstock.processes.child import die_with_parent, send_to_parent
from penstock.processes.listen import listen_for_operators
from penstock.processes.signals import on_stop_signal
from penstock.settings import ModelSpec, Settings
from penstock.transports import make_transport
from penstock.transports.base import WorkerStore
from penstock.worker.worker import Worker

logger = logging.getLogger("penstock.worker")

EXIT_STALLED = 70  # EX_SOFTWARE; a supervisor starts another process
OPEN_RETRY_S = 0.5


def run_worker(settings: Settings) -> int:
    """Blocks until a signal (the first one drains, the second one hands back at once); returns the exit status."""
    die_with_parent()
    configure_logs(settings.log_format, settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


def build_worker(settings: Settings, store: WorkerStore, metrics: Metrics | None) -> Worker:
    """A worker as the settings describe it. One whose engine hangs ends the process that it is in.

    `ConfigError` names the model, and the option, that is wrong.
    """
    return Worker(
        store,
        build_backends(settings.models),
        max_batch_size=settings.max_batch_size,
        max_batches=settings.max_batches,
        window_s=settings.batch_window_ms / 1000,
        closes_early=settings.batch_window_early,
        engine_stall_s=settings.engine_stall_s,
        drain_s=settings.drain_s,
        metrics=metrics,
        on_stall=end_process,
        on_enlist=send_to_parent,
    )


def build_backends(models: tuple[ModelSpec, ...]) -> dict[str, Backend]:
    """A backend for each model, under all its names; without any, one mock."""
    backends: dict[str, Backend] = {}
    for spec in models or (ModelSpec("mock", "mock"),):
        try:
            backend = build_backend(spec.backend, spec.own_options)
        except ConfigError as error:
            raise ConfigError(f"model {spec.name}: {error.message}") from error
        backend.name = spec.name
        backends |= dict.fromkeys(spec.names, backend)
    return backends


def end_process(seconds: float) -> None:
    """End this process now, from any thread: one whose engine hangs cannot end cleanly."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(EXIT_STALLED)


def _end_with(task: asyncio.Task[None]) -> None:
    """End a process that has lost one of its loops: it would do nothing but look healthy. A supervisor restarts it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("a loop of the worker's process ended", exc_info=error)
        end_process(0.0)


async def _serve(settings: Settings) -> int:
    metrics = Metrics(models=[spec.name for spec in settings.models])
    store: WorkerStore = make_transport(settings, metrics)
    worker = build_worker(settings, store, metrics)
    app = build_app(metrics, worker.why_not_ready, lambda: {"id": worker.id}, worker.why_degraded)
    ops = await serve_ops(app, listen_for_operators(settings))
    lag = asyncio.create_task(watch_lag(metrics))
    for task in (lag, ops.task):
        task.add_done_callback(_end_with)
    on_stop_signal(lambda number: worker.stop())
    try:
        announce_worker(settings, settings.metrics_host, ops.port)
        if await _open(store, worker):
            await worker.run()
    finally:
        lag.cancel()
        await ops.close()
        await store.close()
    return 0


async def _open(store: WorkerStore, worker: Worker) -> bool:
    """Wait for the store, unready. False when stopped before it came."""
    is_logged = False
    while not worker.is_stopping:
        try:
            await store.open()
            await store.check()
            return True
        except StoreUnavailable as error:
            if not is_logged:
                logger.warning("waiting for the store: %s", error.message)
                is_logged = True
            await asyncio.sleep(OPEN_RETRY_S)
    return False
