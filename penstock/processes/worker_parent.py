"""`penstock worker`, supervised: a small parent that starts the worker again when it dies, and reports its death.

Without the report a dead worker's jobs wait until its lease lapses; with it they are back in the queue at once. The
child sends its worker id; the parent itself computes nothing and holds no connection. If it is killed, its
child ends too. Knows no engine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import TYPE_CHECKING

from penstock.errors import PenstockError
from penstock.logs import configure as configure_logs
from penstock.processes.supervisor import Death, Supervisor, program
from penstock.settings import Settings
from penstock.settings.about import env_name
from penstock.settings.export import to_environ

if TYPE_CHECKING:
    from penstock.transports.base import WorkerStore

logger = logging.getLogger(__name__)

REPORT_WITHIN_S = 2.0


def run_supervised(settings: Settings) -> int:
    """Blocks until a signal, which goes to the worker; returns the worker's exit status."""
    configure_logs(settings.log_format, settings.log_level)
    environ = {**os.environ, **to_environ(settings), env_name("supervised"): "no"}
    if not settings.is_set("metrics_port"):
        environ.pop(env_name("metrics_port"), None)  # then a port that is taken is not an error
    reports: list[threading.Thread] = []

    def on_death(death: Death) -> None:
        if death.status == 0:
            return  # it was stopped, and has given back what it held
        logger.error("the worker died", extra={"pid": death.pid, "status": death.status, "worker": death.last_line})
        if death.last_line:
            # In a thread, so that the next child starts meanwhile.
            reports[:] = [thread for thread in reports if thread.is_alive()]
            reports.append(threading.Thread(target=_report, args=(settings, death.last_line), name="report"))
            reports[-1].start()

    # The transport takes a quarter of a second to import: do it now, while the child starts, and not after its death.
    threading.Thread(target=_preload, args=(settings,), daemon=True, name="import").start()
    return Supervisor(program("penstock", "worker"), environ=environ, on_death=on_death).run()


def _preload(settings: Settings) -> None:
    from penstock.transports import preload

    preload(settings)


def _report(settings: Settings, worker_id: str) -> None:
    try:
        asyncio.run(asyncio.wait_for(report_death(settings, worker_id), REPORT_WITHIN_S))
    except (PenstockError, TimeoutError) as error:
        logger.warning(
            "its death could not be reported, its lease will lapse",
            extra={"worker": worker_id, "reason": str(error) or type(error).__name__},
        )
    else:
        logger.info("its death was reported", extra={"worker": worker_id})


async def report_death(settings: Settings, worker_id: str) -> None:
    """End a dead worker's lease and give back what it held. Safe to repeat. Raises `StoreUnavailable`."""
    from penstock.transports import make_transport

    store: WorkerStore = make_transport(settings)
    try:
        await store.open()
        await store.leave(worker_id)
        await store.reap(worker_id)  # a pop that was under way may have moved one more
    finally:
        await store.close()
