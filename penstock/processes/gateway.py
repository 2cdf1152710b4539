"""The gateway's process: a socket, uvicorn on it, signals, start-up lines, and several processes on one port.

What runs in the same process (a worker, in `penstock serve`) is the argument `companion`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import uvicorn
import uvloop

from penstock.api.app import create_app
from penstock.errors import ConfigError
from penstock.gateway.gateway import Gateway
from penstock.http.connection import GatewayConnection
from penstock.http.door import Door
from penstock.http.listener import ConnectionLimit, accepts_per_turn
from penstock.http.server import HttpServer
from penstock.logs import configure as configure_logs
from penstock.metrics import Metrics, mark_dead, prepare_multiprocess
from penstock.processes.announce import announce_gateway, models_of
from penstock.processes.child import die_with_parent
from penstock.processes.listen import listen_for_clients
from penstock.processes.signals import on_stop_signal
from penstock.processes.stand_in import Refuser
from penstock.processes.supervisor import Death, Supervisor, program
from penstock.settings import Settings
from penstock.settings.export import to_environ
from penstock.transports import make_transport
from penstock.transports.base import WorkerStore

logger = logging.getLogger(__name__)

STALLED_MARGIN_S = 2.0  # streams are cut by `Keepalive`, which accounts for them
LISTENER = "PENSTOCK_LISTENER_FD"
EXIT_FAILED = 70  # EX_SOFTWARE: a bug ended one of the gateway's loops; a supervisor starts another process
# A thread that reads a large body gives way to the event loop after this time; with Python's own 5 ms, which the loop
# may have to wait whenever it comes back from the network, every stream would be much slower meanwhile.
SWITCH_INTERVAL_S = 0.0005

Companion = Callable[[WorkerStore, Metrics], AbstractAsyncContextManager[None]]


def _nothing(store: WorkerStore, metrics: Metrics) -> AbstractAsyncContextManager[None]:
    return contextlib.nullcontext()


class _Server(HttpServer):
    """The server that calls `begin_drain` of the gateway on a signal."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self.gateway = gateway
        self.on_started: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        on_stop_signal(self._on_signal)
        self.on_started()

    def _on_signal(self, number: int) -> None:
        self.gateway.begin_drain()
        self.handle_exit(number, None)


async def serve(settings: Settings, listener: socket.socket, companion: Companion = _nothing) -> int:
    """Run a gateway on `listener`, within the context of `companion`, until a signal; returns the exit status."""
    metrics = Metrics()
    transport = make_transport(settings, metrics)
    host, port = listener.getsockname()[:2]
    gateway = Gateway(settings, transport, metrics, Door(settings, host))
    # A worker in this process may have a connection to an engine for every sequence that it runs.
    limit = ConnectionLimit(
        settings.max_connections, 0 if companion is _nothing else settings.max_batch_size * settings.max_batches
    )
    config = uvicorn.Config(
        create_app(gateway),
        http=limit.apply(
            GatewayConnection,
            header_timeout_s=settings.header_timeout_s,
            stalled_s=settings.slow_reader_s + STALLED_MARGIN_S,
        ),
        log_config=None,
        access_log=False,
        proxy_headers=False,  # admission judges these headers, by `trusted_proxies`
        ws="none",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=math.ceil(settings.drain_s) + 2,
        server_header=False,
        headers=[("x-content-type-options", "nosniff")],
    )
    server = _Server(config, gateway)
    server.accepts_per_turn = accepts_per_turn(settings.processes)
    serves = "whatever live workers announce" if companion is _nothing else models_of(settings)
    server.on_started = lambda: announce_gateway(gateway, host, port, serves)
    refusals: list[ConfigError] = []

    def refuse(error: ConfigError) -> None:
        refusals.append(error)
        server.should_exit = True

    deaths: list[BaseException] = []

    def die(error: BaseException) -> None:
        deaths.append(error)
        server.should_exit = True

    gateway.on_refusal = refuse
    gateway.on_death = die
    try:
        async with companion(transport, metrics):
            await server.serve(sockets=[listener])
    finally:
        await transport.close()
    if refusals:
        raise refusals[0]
    if deaths:
        return EXIT_FAILED
    return 0 if server.started else 1


def run(settings: Settings, listener: socket.socket, companion: Companion = _nothing) -> int:
    """`serve` in a new event loop, with signals, logs and the parent's lifeline. Returns the exit status."""
    die_with_parent()
    configure_logs(settings.log_format, settings.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings, listener, companion))


def run_gateway(settings: Settings) -> int:
    """`penstock gateway`: one process, or `--processes N` of them on one port."""
    if settings.redis_url is None:
        raise ConfigError("a gateway without a worker needs Redis: set PENSTOCK_REDIS_URL, or use 'penstock serve'")
    inherited = os.environ.pop(LISTENER, "")
    if inherited:
        return run(settings, socket.socket(fileno=int(inherited)))
    listener = listen_for_clients(settings)
    if settings.processes == 1:
        return run(settings, listener)
    configure_logs(settings.log_format, settings.log_level)
    listener.set_inheritable(True)
    with tempfile.TemporaryDirectory(prefix="penstock-metrics-") as directory:
        prepare_multiprocess(directory)
        environ = {**os.environ, **to_environ(settings), LISTENER: str(listener.fileno())}

        def on_death(death: Death) -> None:
            if death.status != 0:
                logger.error("a gateway process died", extra={"pid": death.pid, "status": death.status})
            mark_dead(death.pid, directory)

        return Supervisor(
            program("penstock", "gateway"),
            num=settings.processes,
            environ=environ,
            pass_fds=[listener.fileno()],
            on_death=on_death,
            stand_in=Refuser(listener),
        ).run()
