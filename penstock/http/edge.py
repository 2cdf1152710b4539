"""The common frame of every HTTP request: its id, the one error envelope, the headers, and its one log line.

A plain ASGI middleware. It knows nothing of what the routes do; they report it in the `Call` in the scope.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.errors import (
    BodyTooLarge,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    PenstockError,
    SlowBody,
    Unavailable,
)
from penstock.http.body_bytes import ClientGone
from penstock.http.connection import CLIENT, header
from penstock.http.door import Door
from penstock.http.refusal import retry_headers
from penstock.logs import bind_request, log_fields

logger = logging.getLogger("penstock.access")

_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUIET = ("/livez", "/readyz", "/healthz", "/health", "/ping", "/metrics")
CLIENT_GONE = 499
IS_HEAD = "penstock.is_head"  # in the scope that routes see, where the request's method is HEAD
MAX_QUERY_BYTES = 4096  # a longer one may hold thousands of parameters, and routes know a handful


class Dialect:
    """The headers and the error body of an API other than our own. This one is OpenAI's."""

    def headers(self, call: Call) -> list[tuple[bytes, bytes]]:
        """More headers of an answer that begins now."""
        return [(b"openai-processing-ms", b"%d" % ((time.monotonic() - call.started_at) * 1000))]

    def envelope(self, error: PenstockError, request_id: str) -> dict[str, Any]:
        """The body of an error."""
        return error.envelope()


Refund = Callable[[int], Awaitable[dict[str, str]]]  # of so many requests; returns the headers that are true then


class Call:
    """One HTTP request at this gateway: what its log line and its answer's headers are made of."""

    __slots__ = (
        "bug",
        "caller",
        "dialect",
        "endpoint",
        "fields",
        "headers",
        "id",
        "is_gone",
        "is_refused",
        "num_charged",
        "outcome",
        "refund",
        "send",
        "started_at",
        "status",
    )

    def __init__(self, call_id: str) -> None:
        self.id = call_id
        self.started_at = time.monotonic()
        self.status = 0
        self.outcome = ""
        self.is_gone = False
        self.is_refused = False
        self.endpoint = ""
        self.caller = ""
        self.bug: Exception | None = None
        self.send: Send | None = None  # the server's own, for what comes after the head
        self.dialect: Dialect | None = None  # None: our own
        self.num_charged = 0  # as how many requests it was counted against its caller's rate
        self.refund: Refund | None = None
        self.headers: dict[str, str] = {}
        self.fields: dict[str, Any] = {}


def call_of(request: Request) -> Call:
    call: Call = request.scope["penstock.call"]
    return call


def is_head(request: Request) -> bool:
    """Whether the client asks with HEAD, which is routed as GET: a stream then answers with its head alone."""
    return IS_HEAD in request.scope


Handler = Callable[[Request], Awaitable[Response]]


class Edge:
    """The ASGI application around the whole framework. `new_request_id` makes the id that names a request from here on.

    `on_refused` is called for each request that a route refused. `hot` finds the routes, by method and path, that are
    called from here, without the framework's routing in between (a third of the gateway's time for a short answer);
    the framework still knows and documents them. `door`: judges a request by its head before anything else; None where
    all are answered. `dialect_of`: in whose form a path is answered where no route has begun.

    HEAD is routed as GET, and the server leaves the body out; a route that streams asks `is_head`.
    """

    def __init__(
        self,
        app: ASGIApp,
        new_request_id: Callable[[], str],
        on_refused: Callable[[Call], None],
        hot: Callable[[str, str], Handler | None] = lambda method, path: None,
        door: Door | None = None,
        dialect_of: Callable[[str], Dialect | None] = lambda path: None,
    ) -> None:
        self.app = app
        self.new_request_id = new_request_id
        self.on_refused = on_refused
        self.hot = hot
        self.door = door
        self.dialect_of = dialect_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = scope["penstock.call"] = Call(self.new_request_id())
        call.send = send
        call.dialect = self.dialect_of(scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_encode_headers(call)]
            await send(message)

        routed = scope
        if scope["method"] == "HEAD":
            routed = {**scope, "method": "GET", IS_HEAD: True}  # a copy: the server needs the HEAD in its own
        handler = self.hot(routed["method"], scope["path"])
        with bind_request(call.id):
            try:
                if self.door is not None:
                    self.door.judge(scope["headers"])
                if len(scope["query_string"]) > MAX_QUERY_BYTES:
                    raise InvalidRequest(f"The query string is longer than {MAX_QUERY_BYTES} bytes (MAX_QUERY_BYTES).")
                if handler is None:
                    await self.app(routed, receive, send_with_headers)
                else:
                    await (await handler(Request(routed, receive)))(routed, receive, send_with_headers)
            except Exception as error:
                if error is call.bug:  # `on_error` has answered it, and the framework raises it again
                    return
                if call.status:  # a part of the answer is sent; the server closes the connection
                    logger.exception("a bug in a route")
                    raise
                await give_back(call, error)
                await refusal(call, error)(scope, receive, send_with_headers)
            finally:
                if call.is_refused:
                    self.on_refused(call)
                self._log(scope, call)
                # see "No cycles": both refer to the server's cycle, which refers to the scope, which refers to both
                call.send = call.refund = None
                scope.pop(CLIENT, None)

    def _log(self, scope: Scope, call: Call) -> None:
        total_ms = round((time.monotonic() - call.started_at) * 1000, 2)
        client_id = header(scope, b"x-request-id")
        status = CLIENT_GONE if call.is_gone else call.status
        level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
        if logger.isEnabledFor(level):
            fields = {
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "caller": call.caller,
                "outcome": call.outcome or ("ok" if 0 < status < 400 else "error"),
                "total_ms": total_ms,
                **call.fields,
            }
            if client_id and _CLIENT_ID.fullmatch(client_id):
                fields["client_request_id"] = client_id
            log_fields(logger, level, "request", fields)


def _encode_headers(call: Call) -> list[tuple[bytes, bytes]]:
    named = [(name.encode(), value.encode()) for name, value in call.headers.items()]
    if call.dialect is not None:
        named += call.dialect.headers(call)
    return [(b"x-request-id", call.id.encode()), *named]


async def give_back(call: Call, error: Exception) -> None:
    """A request that there was no room for does not count against its caller's rate. Call it before the answer."""
    if call.refund is not None and isinstance(error, Overloaded | Unavailable):
        num, call.num_charged = call.num_charged, 0
        call.headers |= await call.refund(num)


def error_response(error: PenstockError, call: Call) -> Response:
    """The answer for `error`: its status, its envelope, and when to retry."""
    headers = error.headers | retry_headers(error)
    headers.setdefault("x-should-retry", "true" if error.retryable else "false")
    if isinstance(error, SlowBody | BodyTooLarge):
        headers["connection"] = "close"  # the rest of the body is unread
    body = error.envelope() if call.dialect is None else call.dialect.envelope(error, call.id)
    return Response(msgspec.json.encode(body), error.status, headers, "application/json")


def refusal(call: Call, error: Exception) -> Response:
    """The answer to a request that ended in `error`."""
    if isinstance(error, ClientGone):  # before its whole request arrived: no client reads this
        call.is_gone = True
        call.outcome = "disconnected"
        return Response(status_code=CLIENT_GONE)
    if isinstance(error, PenstockError):
        call.is_refused = True
    else:
        logger.error("a bug in a route", exc_info=error)
        call.bug = error
        error = InternalError(f"Penstock failed to answer this ({type(error).__name__}).")
    call.outcome = error.code
    return error_response(error, call)


async def on_error(request: Request, error: Exception) -> Response:
    """The framework calls this for what a route raised."""
    await give_back(call_of(request), error)
    return refusal(call_of(request), error)


async def on_bad_query(request: Request, error: Exception) -> Response:
    """A query parameter that FastAPI refused, as one of our errors."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return refusal(call_of(request), InvalidRequest(f"'{name}': {first['msg']}.", param=name))


def _allowed(request: Request) -> list[str]:
    """The methods that have a route at this path, of all routers: the framework's own Allow names those of one route.

    HEAD is answered where GET is.
    """
    routes, scope = request.app.routes, dict(request.scope)
    found = []
    for method in ("GET", "POST", "DELETE"):
        scope["method"] = method
        if any(route.matches(scope)[0] is Match.FULL for route in routes):
            found += ["GET", "HEAD"] if method == "GET" else [method]
    return found


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such route, wrong method) as ours."""
    if not isinstance(error, HTTPException):
        raise error
    path = request.scope["path"][:200]
    ours: PenstockError = InvalidRequest(str(error.detail))
    if error.status_code == 404:
        ours = NotFound(f"There is nothing at {path!r}.")
    elif error.status_code == 405:
        ours = MethodNotAllowed(f"{request.method} is not allowed at {path!r}.")
        ours.headers = {"allow": ", ".join(_allowed(request))}
    return refusal(call_of(request), ours)
