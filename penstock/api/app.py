"""The HTTP face of a gateway: every route, what an error looks like, and what each request goes through first."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from functools import partial

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from penstock.api.apis import apis_of
from penstock.api.callers import guard_metrics
from penstock.errors import PenstockError
from penstock.gateway.gateway import Gateway
from penstock.http.docs_page import docs_routes
from penstock.http.document import describe
from penstock.http.edge import Call, Edge, on_bad_query, on_error, on_http_error
from penstock.http.ops import routes as ops_routes
from penstock.version import __version__

EXPOSED = (
    "idempotent-replayed",
    "request-id",
    "retry-after",
    "retry-after-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-request-id",
    "x-should-retry",
)


def create_app(gateway: Gateway) -> ASGIApp:
    """The HTTP face of `gateway`. The caller starts and stops it, or lets `lifespan` do so."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    app = FastAPI(
        title="Penstock",
        version=__version__,
        description="An LLM serving platform in which a request is a durable object.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would lead to the host that the client sent, over http
    )
    apis = apis_of(gateway)
    ops = ops_routes(
        gateway.metrics,
        gateway.why_not_ready,
        lambda: {"id": gateway.id},
        partial(guard_metrics, gateway),
        gateway.why_degraded,
    )
    routers = (*apis.routers, ops)
    for router in routers:
        app.include_router(router)
    app.include_router(docs_routes("/openapi.json"))
    app.add_exception_handler(PenstockError, on_error)
    app.add_exception_handler(Exception, on_error)  # else the framework answers a bug in its own format
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_bad_query)
    describe(app, routers, apis.bodies, apis.envelope)
    door = gateway.door if gateway.door is not None and gateway.door.judges else None

    def count_refusal(call: Call) -> None:
        """A request that never became a stream is counted here; one that did, by its meter."""
        gateway.metrics.refused(str(call.fields.get("model", "")), call.endpoint, call.outcome)

    edge = Edge(app, gateway.new_request_id, count_refusal, apis.handler, door, apis.dialect)
    origins = gateway.settings.cors_origins
    if not origins:
        return edge
    schemes = [f"{re.escape(origin[:-1])}.+" for origin in origins if origin.endswith("://*")]
    # Keys travel in headers of the page's own making, so there are no credentials to allow.
    return CORSMiddleware(
        edge,
        allow_origins=origins,
        allow_origin_regex="|".join(schemes) or None,
        allow_methods=("GET", "HEAD", "POST", "DELETE"),
        allow_headers=("*",),
        allow_private_network=True,  # a browser asks before a page of a public site may reach a private address
        expose_headers=EXPOSED,
    )
