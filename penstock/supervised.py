"""`penstock worker`, supervised: a small parent that starts the worker again when it dies, and reports its death.

Without the report a dead worker's jobs wait until its lease lapses; with it they are back in the queue at once. The
parent itself computes nothing and holds no connection; if it is killed, its child ends too. Knows no engine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys

from penstock.errors import PenstockError
from penstock.logs import configure as configure_logs
from penstock.settings import Settings
from penstock.settings.about import env_name
from penstock.settings.export import to_environ
from penstock.supervisor import Supervisor

logger = logging.getLogger(__name__)

REPORT_WITHIN_S = 2.0


def run_supervised(settings: Settings) -> int:
    """Blocks until a signal, which goes to the worker; returns the worker's exit status."""
    configure_logs(settings.log_format, settings.log_level)
    environ = {**os.environ, **to_environ(settings), env_name("supervised"): "no"}
    if not settings.is_set("metrics_port"):
        environ.pop(env_name("metrics_port"), None)  # then a port that is taken is no error

    def on_death(pid: int, status: int) -> None:
        if status == 0:
            return
        logger.error("the worker died", extra={"pid": pid, "status": status})
        try:
            num = asyncio.run(asyncio.wait_for(report_death(settings, pid), REPORT_WITHIN_S))
        except (PenstockError, TimeoutError) as error:
            logger.warning("its death could not be reported (%s); its lease will lapse", type(error).__name__)
        else:
            logger.info("its death was reported", extra={"pid": pid, "jobs": num})

    command = [sys.executable, "-m", "penstock", "worker"]
    return Supervisor(command, environ=environ, on_death=on_death).run()


async def report_death(settings: Settings, pid: int) -> int:
    """Give back what the worker with this `pid` on this host held; how many jobs. Raises `StoreUnavailable`."""
    from penstock.transports.redis import RedisTransport  # only when it is needed: the parent stays small

    assert settings.redis_url is not None
    transport = RedisTransport(settings.redis_url.get_secret_value(), pool=settings.pool)
    num = 0
    try:
        await transport.open()
        for holding in (await transport.overview()).workers:
            info = holding.info
            if info is not None and info.pid == pid and info.host == socket.gethostname():
                await transport.leave(holding.worker)
                num += await transport.reap(holding.worker) or len(holding.held)
    finally:
        await transport.close()
    return num
