"""The routes for operators of every process: `/livez`, `/readyz`, `/healthz`, `/metrics`, and a small server for them.

`/health`, `/ping` and `/version` are those of vLLM and SGLang, which benchmarks, load balancers and hosts ask for.

The same handlers serve in a gateway's app and in a worker's own. What makes a process ready is known to its
owner, which passes `ready`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from penstock.errors import ConfigError, Forbidden, NotFound, Unauthorized, Unavailable
from penstock.http.http1 import Http1Connection
from penstock.http.json_response import NO_STORE, json_response
from penstock.http.listener import ConnectionLimit
from penstock.http.refusal import retry_headers
from penstock.http.server import HttpServer
from penstock.metrics import Metrics
from penstock.version import __version__

if TYPE_CHECKING:
    from fastapi import APIRouter

    from penstock.http.edge import Handler


MAX_CONNECTIONS = 256  # of a worker's small server

Ready = Callable[[], list[str]]
Info = Callable[[], dict[str, Any]]
Guard = Callable[[Request], None]


class Ops:
    """The handlers. `ready` gives the reasons why not, `degraded` what a ready process cannot do; `info` a small JSON
    object about the process.

    `guard` raises for a request that may not read the metrics.
    """

    def __init__(
        self,
        metrics: Metrics,
        ready: Ready,
        info: Info,
        guard: Guard = lambda request: None,
        degraded: Ready = list,
    ) -> None:
        self._metrics = metrics
        self._ready = ready
        self._degraded = degraded
        self._info = info
        self._guard = guard

    async def livez(self, request: Request) -> Response:
        """The process runs and its event loop turns."""
        return json_response({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """Whether the process can serve: 200, or 503 with the reasons. What it cannot do meanwhile is in the 200."""
        reasons = self._ready()
        if not reasons:
            limits = self._degraded()
            return json_response({"status": "degraded", "reasons": limits} if limits else {"status": "ready"})
        error = Unavailable(f"Not ready: {'; '.join(reasons)}.")
        return json_response(error.envelope(), error.status, retry_headers(error))

    async def healthz(self, request: Request) -> Response:
        """A summary for people: always 200 while the process lives."""
        reasons = self._ready() + self._degraded()
        return json_response({"status": "degraded" if reasons else "ok", "reasons": reasons} | self._info())

    async def version(self, request: Request) -> Response:
        """The version of Penstock that runs."""
        return json_response({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        """Every metric, in Prometheus' text form."""
        self._guard(request)
        self._metrics.flush()
        # Writing them out takes milliseconds: off the loop, so that no token waits for it.
        body, content_type = await asyncio.to_thread(self._metrics.render, request.headers.get("accept", ""))
        return Response(body, headers=NO_STORE | {"content-type": content_type})


def routes(
    metrics: Metrics, ready: Ready, info: Info, guard: Guard = lambda request: None, degraded: Ready = list
) -> APIRouter:
    """The routes for a FastAPI app, with their place in its OpenAPI page."""
    from fastapi import APIRouter  # a worker's small app does without it

    from penstock.http.openapi import Documented, Failures, add_route, answer_of
    from penstock.http.ops_answers import HealthSummary, Liveness, Readiness, VersionAnswer

    ops = Ops(metrics, ready, info, guard, degraded)
    router = APIRouter(tags=["operations"])
    text = Documented({"content": {"text/plain": {"schema": {"type": "string"}}}})
    table: list[tuple[str, Handler, Documented, Failures]] = [
        ("livez", ops.livez, answer_of(Liveness), ()),
        ("readyz", ops.readyz, answer_of(Readiness), (Unavailable,)),
        ("healthz", ops.healthz, answer_of(HealthSummary), ()),
        ("health", ops.readyz, answer_of(Readiness), (Unavailable,)),
        ("ping", ops.readyz, answer_of(Readiness), (Unavailable,)),
        ("version", ops.version, answer_of(VersionAnswer), ()),
        ("metrics", ops.metrics, text, (Unauthorized, Forbidden)),
    ]
    for name, handler, answer, failures in table:
        summary = (handler.__doc__ or "").rstrip(".")
        add_route(router, "GET", f"/{name}", handler, name, answer, failures, summary=summary)
    return router


def build_app(metrics: Metrics, ready: Ready, info: Info, degraded: Ready = list) -> ASGIApp:
    """The whole app of a process that serves nothing else: a worker."""
    ops = Ops(metrics, ready, info, degraded=degraded)

    async def not_found(request: Request, error: Exception) -> Response:
        missing = NotFound("There is nothing here but /livez, /readyz, /healthz and /metrics.")
        return json_response(missing.envelope(), missing.status)

    return Starlette(
        routes=[
            Route("/livez", ops.livez),
            Route("/readyz", ops.readyz),
            Route("/healthz", ops.healthz),
            Route("/health", ops.readyz),
            Route("/ping", ops.readyz),
            Route("/version", ops.version),
            Route("/metrics", ops.metrics),
        ],
        exception_handlers={404: not_found},
    )


# ── a small server in a loop that also runs other things ─────────────────────────────────────────────────────────


class OpsServer:
    """A running server at `port`; `task` runs until it is closed."""

    def __init__(self, server: HttpServer, task: asyncio.Task[None], port: int) -> None:
        self._server = server
        self.task = task
        self.port = port

    async def close(self) -> None:
        """Stop accepting, give open answers a second, and return. Safe to repeat."""
        self._server.should_exit = True
        await self.task


async def serve_ops(app: ASGIApp, listener: socket.socket) -> OpsServer:
    """Serve `app` on `listener` in the running loop. Returns when it serves. Raises `ConfigError` if it does not."""
    config = uvicorn.Config(
        app,
        http=ConnectionLimit(MAX_CONNECTIONS).apply(Http1Connection),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        headers=[("x-content-type-options", "nosniff")],
        timeout_graceful_shutdown=1,
    )
    server = HttpServer(config)
    port = listener.getsockname()[1]
    task = asyncio.create_task(server.serve(sockets=[listener]), name="ops-server")
    while not server.started:
        if task.done():
            await task  # raises what went wrong
            raise ConfigError(f"the metrics server did not start on port {port}")
        await asyncio.sleep(0)
    return OpsServer(server, task, port)
